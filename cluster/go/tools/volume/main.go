// Volume makes or removes the folder of one local volume.
//
// local-path-provisioner runs it in a helper pod as `volume -p PATH -s BYTES -m MODE -a create|delete`;
// only the path matters here.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	options := flag.NewFlagSet("volume", flag.ExitOnError)
	path := options.String("p", "", "folder of the volume")
	action := options.String("a", "", "create or delete")
	options.String("s", "", "size in bytes; a folder has no limit")
	options.String("m", "", "volume mode; always a file system")
	_ = options.Parse(os.Args[1:])
	if err := run(*action, *path); err != nil {
		fmt.Fprintln(os.Stderr, "volume:", err)
		os.Exit(1)
	}
}

func run(action, path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) == "/" {
		return fmt.Errorf("-p is %q: it must be the absolute path of a volume's folder", path)
	}
	switch action {
	case "create":
		if err := os.MkdirAll(path, 0o777); err != nil {
			return err
		}
		return os.Chmod(path, 0o777) // MkdirAll obeys the umask; pods run as any user
	case "delete":
		return os.RemoveAll(path)
	default:
		return fmt.Errorf("-a is %q: it must be create or delete", action)
	}
}

// Probe is what the tests run in pods: one static program instead of an image with a shell.
package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"
)

// A new Service's name and address take a moment to reach every part.
const patience = 30 * time.Second

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

func run(words []string) error {
	if len(words) == 0 {
		return errors.New("say serve, get, lookup, write or read")
	}
	switch verb, rest := words[0], words[1:]; verb {
	case "serve":
		return serve(rest[0])
	case "get":
		return untilItWorks(func() error { return get(rest[0]) })
	case "lookup":
		return untilItWorks(func() error { return lookup(rest[0]) })
	case "write":
		return os.WriteFile(rest[0], []byte(rest[1]), 0o644)
	case "read":
		data, err := os.ReadFile(rest[0])
		fmt.Print(string(data))
		return err
	default:
		return fmt.Errorf("unknown verb %q", verb)
	}
}

// serve answers every request with this pod's name, and says so once on its standard output.
func serve(address string) error {
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	fmt.Println("serving as", name)
	return http.Serve(listener, http.HandlerFunc(func(answer http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(answer, name)
	}))
}

func get(url string) error {
	client := http.Client{Timeout: 2 * time.Second}
	answer, err := client.Get(url)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	_, err = io.Copy(os.Stdout, answer.Body)
	return err
}

func lookup(name string) error {
	addresses, err := net.LookupHost(name)
	for _, address := range addresses {
		fmt.Println(address)
	}
	return err
}

func untilItWorks(try func() error) error {
	deadline := time.Now().Add(patience)
	for {
		err := try()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

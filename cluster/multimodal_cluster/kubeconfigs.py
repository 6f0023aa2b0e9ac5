"""Credentials as files that every Kubernetes client reads."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

from multimodal_cluster.addresses import API_URL

if TYPE_CHECKING:
    from pathlib import Path


def write(file: Path, identity: str, certificates: Path) -> Path:
    """Write the kubeconfig of one identity, readable by its owner only; JSON is YAML too."""

    def data(name: str) -> str:
        return base64.b64encode((certificates / name).read_bytes()).decode()

    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "multimodal", "cluster": {"server": API_URL, "certificate-authority-data": data("ca.crt")}}
        ],
        "users": [
            {
                "name": identity,
                "user": {
                    "client-certificate-data": data(f"{identity}.crt"),
                    "client-key-data": data(f"{identity}.key"),
                },
            }
        ],
        "contexts": [{"name": "multimodal", "context": {"cluster": "multimodal", "user": identity}}],
        "current-context": "multimodal",
    }
    write_json(file, content)
    file.chmod(0o600)
    return file


def write_json(file: Path, content: object) -> Path:
    """Write a configuration file, only if it changed."""
    text = json.dumps(content, indent=2) + "\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists() or file.read_text() != text:
        file.write_text(text)
    return file

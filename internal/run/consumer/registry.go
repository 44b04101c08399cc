package consumer

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// Registry is a registry of container images on a loopback port, which lets in clients with a certificate alone.
type Registry struct {
	*Process
	Address string // localhost:port
}

// StartRegistry starts docker-registry in a new directory below dir, with a certificate and its key, for the clients of a CA.
func StartRegistry(ctx context.Context, dir, certificate, key, clients string) (*Registry, error) {
	home, err := os.MkdirTemp(dir, "registry")
	if err != nil {
		return nil, err
	}
	address, err := FreeAddress()
	if err != nil {
		return nil, err
	}
	config := filepath.Join(home, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %q}}\n"+
		"http: {addr: %q, tls: {certificate: %q, key: %q, clientcas: [%q]}}\n", home, address, certificate, key, clients)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return nil, err
	}
	run, err := Start(ctx, Program{Path: "docker-registry", Args: []string{"serve", config}, Ready: Listening(address)})
	if err != nil {
		return nil, err
	}
	return &Registry{Process: run, Address: "localhost" + address[len("127.0.0.1"):]}, nil
}

package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// The files of a member's certificate, which PostgreSQL reads while ssl is on.
const (
	serverCertificate = "server.crt"
	serverKey         = "server.key"
	clientRoots       = "clients.crt"
)

// Certify gives the member's PostgreSQL a certificate with what is above it, its key, and the roots of clients, all PEM. They count once
// Configure turns ssl on.
func (m *Member) Certify(certificate, key, roots []byte) error {
	for name, text := range map[string][]byte{serverCertificate: certificate, serverKey: key, clientRoots: roots} {
		path := filepath.Join(m.Dir, name)
		if err := errors.Join(os.WriteFile(path, text, 0o600), m.cluster.own(path)); err != nil {
			return err
		}
	}
	return nil
}

// Configure changes what Patroni keeps in etcd for all members, as patronictl edit-config does: {"postgresql": {"parameters": …}} for example.
// The members take it over one by one, which it does not wait for.
func (c *Cluster) Configure(ctx context.Context, change map[string]any) error {
	text, err := json.Marshal(change)
	if err != nil {
		return err
	}
	primary, err := c.Primary(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	ask, err := http.NewRequestWithContext(ctx, http.MethodPatch, "http://"+primary.REST()+"/config", bytes.NewReader(text))
	if err != nil {
		return err
	}
	answer, err := http.DefaultClient.Do(ask)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	said, err := io.ReadAll(io.LimitReader(answer.Body, 1000))
	if answer.StatusCode != http.StatusOK {
		return errors.Join(fmt.Errorf("patroni of %s answers %s: %s", primary.Name, answer.Status, said), err)
	}
	return err
}

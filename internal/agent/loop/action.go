package loop

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/agent/probe"
	"chancery/internal/agent/recipe"
)

// actionDrop is the action that disconnects the clients of revoked certificates from libvirtd. A CRL is looked at when a
// client connects; one that was connected before stays until it is told to go.
const actionDrop = "drop-revoked-clients"

// dropRevoked disconnects those TLS clients whose subject is that of a certificate which was revoked since the last time.
// A subject that holds a new certificate beside the revoked one connects again at once; it is disconnected once for each
// revocation and not at every change.
func (w *work) dropRevoked(ctx context.Context, step recipe.Step) error {
	counts := map[string]int{}
	fresh := map[string]bool{} // allow-list lines, as virt-admin prints subjects
	for _, der := range w.trusts.general.revoked {
		key := base64.RawStdEncoding.EncodeToString(client.Fingerprint(der)[:16])
		counts[key]++
		if counts[key] > w.record.Dropped[key] {
			if line := probe.AllowListLine(&x509.Certificate{RawSubject: der}); line != "" {
				fresh[line] = true
			}
		}
	}
	if len(fresh) > 0 {
		if err := w.disconnect(ctx, step, fresh); err != nil {
			return err
		}
	}
	w.record.Dropped = counts
	if len(counts) == 0 {
		w.record.Dropped = nil
	}
	return nil
}

// disconnect asks libvirtd for its clients, and sends those away whose subject is listed.
func (w *work) disconnect(ctx context.Context, step recipe.Step, subjects map[string]bool) error {
	server := step.With["server"]
	if server == "" {
		server = "libvirtd"
	}
	admin := func(words ...string) (string, error) {
		out, err := w.agent.system.Run(ctx, probe.Command{Args: append(adminCommand(step.With), words...), User: step.User, Timeout: time.Duration(step.Timeout)})
		return string(out), err
	}
	list, err := admin("srv-clients-list", server)
	if err != nil {
		return err
	}
	var wrong []error
	for _, id := range tlsClients(list) {
		text, err := admin("client-info", server, id)
		if err != nil {
			// It left by itself; or it has said nothing since it connected, and then the daemon does not tell whose it is.
			// It may be the one that is revoked, and any other connects again.
			if _, err := admin("client-disconnect", server, id); err == nil {
				w.notes = append(w.notes, fmt.Sprintf("client %s, of whom the daemon does not say whose certificate it showed, was disconnected", id))
			}
			continue
		}
		subject := subjectOfClient(text)
		if !subjects[subject] {
			continue
		}
		if _, err := admin("client-disconnect", server, id); err != nil {
			wrong = append(wrong, fmt.Errorf("disconnect client %s (%s): %w", id, subject, err))
			continue
		}
		w.agent.log.Info("client of a revoked certificate disconnected", "placement", w.folder.name, "client", id, "subject", subject)
		w.notes = append(w.notes, fmt.Sprintf("client %s, whose certificate (%s) is revoked, was disconnected", id, subject))
	}
	return errors.Join(wrong...)
}

func adminCommand(with map[string]string) []string {
	program := with["program"]
	if program == "" {
		program = "virt-admin"
	}
	vector := []string{program}
	if words := with["words"]; words != "" {
		vector = append(vector, strings.Split(words, "\x00")...)
	}
	vector = append(vector, "-q")
	if with["uri"] != "" {
		vector = append(vector, "-c", with["uri"])
	}
	return vector
}

// clientLine is a line of virt-admin's list: number, transport, and since when.
var clientLine = regexp.MustCompile(`(?m)^\s*([0-9]+)\s+tls\s`)

func tlsClients(list string) []string {
	var ids []string
	for _, m := range clientLine.FindAllStringSubmatch(list, -1) {
		ids = append(ids, m[1])
	}
	return ids
}

// subjectLine is the line of client-info that says whose certificate the client showed.
var subjectLine = regexp.MustCompile(`(?m)^\s*[\w.]*x509[\w.]*\s*:\s*(.*?)\s*$`)

func subjectOfClient(text string) string {
	m := subjectLine.FindStringSubmatch(text)
	if m == nil {
		return ""
	}
	return m[1]
}

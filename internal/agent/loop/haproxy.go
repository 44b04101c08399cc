package loop

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"chancery/internal/agent/place"
	"chancery/internal/agent/recipe"
	"chancery/internal/pki/keyfile"
)

// actionHAProxy is the action that hands HAProxy a new certificate over its stats socket, whose level must be admin: no
// process is replaced, and no connection notices. The commands are those of the HAProxy Management Guide, section 9.3: "set
// ssl cert", "commit ssl cert", "abort ssl cert".
//
// Its commands for trust and CRLs are not used: HAProxy 2.4 to 3.2.6 dies where "commit ssl ca-file" or "commit ssl
// crl-file" and "commit ssl cert" follow each other (HAProxy issue 3165).
const actionHAProxy = "set-haproxy-certificate"

const (
	haproxyTimeout = 30 * time.Second
	haproxyAnswer  = 64 << 10
)

// haproxyFile is a file with a certificate, its path and its key, as HAProxy knows it: by the path in its configuration.
type haproxyFile struct{ path, text string }

// setHAProxyCertificate hands over what is placed, if the trust is as the process has read it. Else, and where the socket
// does not do it, the master process is told to reload, and a new process reads all files.
func (c *consumer) setHAProxyCertificate(ctx context.Context, step recipe.Step) error {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(time.Duration(step.Timeout), haproxyTimeout))
	defer cancel()
	reload := recipe.Signal{PIDFile: step.With["pid_file"], Process: "haproxy", Signal: "USR2"}
	if !c.trusted {
		return c.signal(reload)
	}
	socket := c.system.Path(step.With["socket"])
	files, err := c.haproxyFiles()
	for i := 0; err == nil && i < len(files); i++ {
		err = commitHAProxy(ctx, socket, files[i])
	}
	if err == nil {
		return nil
	}
	if again := c.signal(reload); again != nil {
		return errors.Join(err, fmt.Errorf("reload instead: %w", again))
	}
	c.note(fmt.Sprintf("HAProxy was reloaded, since it did not take the certificate over %s: %s", socket, err))
	return nil
}

func (c *consumer) haproxyFiles() ([]haproxyFile, error) {
	var files []haproxyFile
	for _, f := range c.plan.Files {
		if !f.Secret() || f.Format != "pem" {
			continue
		}
		path := c.system.Path(f.Path)
		text, err := place.ReadPlain(c.system.Root, f.Path, keyfile.MaxFile)
		if err != nil {
			return nil, err
		}
		files = append(files, haproxyFile{path: path, text: strings.TrimRight(string(text), "\n")})
	}
	return files, nil
}

func commitHAProxy(ctx context.Context, socket string, f haproxyFile) error {
	// A payload ends with an empty line, so it must have none inside. What is placed are PEM blocks and nothing else.
	if f.text == "" || strings.Contains(f.text, "\n\n") || strings.Contains(f.text, "\r") {
		return fmt.Errorf("%s is empty or has empty lines, so it cannot be sent", f.path)
	}
	answer, err := askHAProxy(ctx, socket, "set ssl cert "+f.path+" <<\n"+f.text+"\n\n")
	if err != nil {
		return err
	}
	if !strings.Contains(answer, "Transaction created for ") && !strings.Contains(answer, "Transaction updated for ") {
		return fmt.Errorf("set ssl cert %s: %s", f.path, haproxySays(answer))
	}
	answer, err = askHAProxy(ctx, socket, "commit ssl cert "+f.path+"\n")
	if err == nil && strings.Contains(answer, "Success!") {
		return nil
	}
	if err == nil {
		err = fmt.Errorf("commit ssl cert %s: %s", f.path, haproxySays(answer))
	}
	// A transaction that stays open keeps everybody else from changing a certificate.
	_, wrong := askHAProxy(context.WithoutCancel(ctx), socket, "abort ssl cert "+f.path+"\n")
	return errors.Join(err, wrong)
}

// haproxySays is an answer in one line; none is what HAProxy gives to a payload that is larger than its buffer.
func haproxySays(answer string) string {
	line := strings.Join(strings.Fields(answer), " ")
	if line == "" {
		return "no answer; a file that is larger than tune.bufsize is dropped"
	}
	return cut(line, 200)
}

// askHAProxy sends one command on a connection of its own, and reads the answer to its end.
func askHAProxy(ctx context.Context, socket, command string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, haproxyTimeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return "", err
		}
	}
	_, sent := io.WriteString(conn, command) // it may have answered and closed before the end
	var answer bytes.Buffer
	_, err = io.Copy(&answer, io.LimitReader(conn, haproxyAnswer))
	if answer.Len() > 0 {
		return answer.String(), nil
	}
	if err := cmp.Or(sent, err); err != nil {
		return "", fmt.Errorf("%s: %w", haproxySays(""), err)
	}
	return "", nil
}

package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
)

// maxSecret bounds a password, a passphrase or a token.
const maxSecret = 4 << 10

// secret reads a one-line secret from a file, or from standard input when the name is -.
func (g *globals) secret(file, what string) ([]byte, error) {
	text, err := g.private(file, what, maxSecret)
	if err != nil {
		return nil, err
	}
	line := strings.TrimRight(string(text), "\r\n")
	clear(text)
	if line == "" || strings.ContainsAny(line, "\r\n") {
		return nil, fault.New(fault.Invalid, "%s: %s holds %s; one line is wanted", what, file, countLines(line))
	}
	return []byte(line), nil
}

// guarded is secret for a file that nobody else may read: it makes this machine a node, once, and whoever has read it may be faster.
func (g *globals) guarded(file, what string) ([]byte, error) {
	if file != "-" {
		text, err := keyfile.ReadSecret(file, maxSecret)
		clear(text)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", what, err)
		}
	}
	return g.secret(file, what)
}

// key reads a file with a private key, which may be encrypted, or standard input when the name is -.
func (g *globals) key(file string) ([]byte, error) {
	return g.private(file, "private key", keyfile.MaxFile)
}

// private is the one reader of what is secret. It reads regular files and standard input alone: a device has no end, and a pipe
// is waited for without one. More than most octets are refused, not cut off.
func (g *globals) private(file, what string, most int64) ([]byte, error) {
	var text []byte
	var err error
	if file == "-" {
		text, err = interruptible(g.ctx, func() ([]byte, error) { return bounded(g.In, most) })
	} else {
		text, err = regular(file, most)
	}
	switch {
	case errors.Is(err, errEndless):
		return nil, fault.New(fault.TooLarge, "%s: %s has more than %d octets", what, file, most)
	case errors.Is(err, errNotRegular):
		return nil, fault.New(fault.Invalid, "%s: %s is no regular file", what, file).WithHint("give a file, or - and the %s on standard input", what)
	case err != nil:
		return nil, fmt.Errorf("read %s: %w", what, err)
	}
	return text, nil
}

var (
	errEndless    = errors.New("it has more octets than are read")
	errNotRegular = errors.New("it is no regular file")
)

// regular reads a regular file.
func regular(file string, most int64) ([]byte, error) {
	text, err := keyfile.ReadFile(file, most)
	switch {
	case fault.Is(err, fault.TooLarge):
		return nil, errEndless
	case errors.Is(err, keyfile.ErrNotRegular):
		return nil, errNotRegular
	}
	return text, err
}

// bounded reads at most so many octets.
func bounded(r io.Reader, most int64) ([]byte, error) {
	var text bytes.Buffer
	n, err := text.ReadFrom(io.LimitReader(r, most+1))
	if err == nil && n > most {
		err = errEndless
	}
	if err != nil {
		return nil, err
	}
	return text.Bytes(), nil
}

// interruptible reads until the command is ended by a signal. What still reads then ends with the process.
func interruptible(ctx context.Context, read func() ([]byte, error)) ([]byte, error) {
	type outcome struct {
		text []byte
		err  error
	}
	done := make(chan outcome, 1)
	go func() {
		text, err := read()
		done <- outcome{text, err}
	}()
	select {
	case o := <-done:
		return o.text, o.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

package demo

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
)

// files are what a consumer reads; trust and crl are empty where clients need no certificate.
type files struct{ key, certificate, trust, crl string }

// Consumer is the hidden command behind the demo: a small TLS server that reads the files of a consumer which is not
// installed, and the steps by which agents check and tell it, or restart a consumer where there is no init system.
//
//	serve KIND ADDRESS PIDFILE KEY CERTIFICATE TRUST CRL
//	check KEY CERTIFICATE
//	hup PIDFILE
//	restart PIDFILE
func Consumer(ctx context.Context, args []string) error {
	switch {
	case len(args) == 8 && args[0] == "serve":
		server := &standIn{kind: args[1], files: files{args[4], args[5], args[6], args[7]}}
		return server.run(ctx, args[2], args[3])
	case len(args) == 3 && args[0] == "check":
		_, err := tls.LoadX509KeyPair(args[2], args[1])
		return err
	case len(args) == 2 && args[0] == "hup":
		pid, err := readPID(args[1])
		if err != nil {
			return err
		}
		return syscall.Kill(pid, syscall.SIGHUP)
	case len(args) == 2 && args[0] == "restart":
		return restart(ctx, args[1])
	}
	return fault.New(fault.Invalid, "serve, check, hup or restart with their arguments would pass")
}

func readPID(file string) (int, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid <= 1 {
		return 0, fault.New(fault.Invalid, "%s holds no process number", file)
	}
	return pid, nil
}

// restart ends a process and waits until another has taken its place, which is for whoever started it to see to.
func restart(ctx context.Context, file string) error {
	old, err := readPID(file)
	if err != nil {
		return err
	}
	if err := syscall.Kill(old, syscall.SIGTERM); err != nil {
		return err
	}
	for {
		if pid, err := readPID(file); err == nil && pid != old {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// standIn is the server.
type standIn struct {
	kind    string
	files   files
	current atomic.Pointer[tls.Config]
}

// run serves until ctx ends. Like the consumers it stands for, it does not start with files that it cannot use, and keeps
// the old ones where a SIGHUP brings such.
func (s *standIn) run(ctx context.Context, address, pidFile string) error {
	config, err := s.load()
	if err != nil {
		return err
	}
	s.current.Store(config)
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dirOf(pidFile), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(pidFile, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644); err != nil {
		return err
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	go func() {
		for range hup {
			if config, err := s.load(); err != nil {
				fmt.Fprintln(os.Stderr, "the old files stay in force:", err)
			} else {
				s.current.Store(config)
			}
		}
	}()
	defer context.AfterFunc(ctx, func() { listener.Close() })()
	if err := s.serve(listener); ctx.Err() == nil {
		return err
	}
	return nil
}

func dirOf(file string) string { return file[:strings.LastIndexByte(file, '/')] }

func (s *standIn) serve(listener net.Listener) error {
	outer := &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return s.current.Load(), nil
	}}
	if s.kind == kindNginx {
		return http.Serve(tls.NewListener(listener, outer), slow())
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go s.answer(conn, outer)
	}
}

// slow is what nginx of package consumer serves: a few octets a second at /slow.
func slow() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, r.TLS.ServerName) })
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		for text := strings.Repeat(".", 500); ; text = ".." {
			if _, err := io.WriteString(w, text); err != nil {
				return
			}
			w.(http.Flusher).Flush()
			select {
			case <-r.Context().Done():
				return
			case <-time.After(time.Second):
			}
		}
	})
	return mux
}

// answer lets one client in, or does not, and says so as libvirtd does: by one octet, or by hanging up.
func (s *standIn) answer(conn net.Conn, config *tls.Config) {
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return
	}
	if s.kind == kindPostgreSQL {
		var request [8]byte
		if _, err := io.ReadFull(conn, request[:]); err != nil || !bytes.Equal(request[:], sslRequest) {
			return
		}
		if _, err := conn.Write([]byte("S")); err != nil {
			return
		}
	}
	t := tls.Server(conn, config)
	if err := t.Handshake(); err != nil || len(t.ConnectionState().PeerCertificates) == 0 {
		return
	}
	if _, err := t.Write([]byte{1}); err == nil {
		_, _ = io.Copy(io.Discard, t)
	}
}

// load reads the files.
func (s *standIn) load() (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(s.files.certificate, s.files.key)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12, SessionTicketsDisabled: true}
	if s.kind == kindPostgreSQL {
		config.NextProtos = []string{"postgresql"}
	}
	if s.files.trust == "" {
		return config, nil
	}
	text, err := os.ReadFile(s.files.trust)
	if err != nil {
		return nil, err
	}
	anchors, err := keyfile.ParseCertificates(text)
	if err != nil {
		return nil, err
	}
	config.ClientCAs = x509.NewCertPool()
	for _, c := range anchors {
		config.ClientCAs.AddCert(c)
	}
	lists, err := readLists(s.files.crl)
	if err != nil {
		return nil, err
	}
	config.ClientAuth = tls.RequireAndVerifyClientCert
	if s.kind == kindPostgreSQL {
		config.ClientAuth = tls.VerifyClientCertIfGiven // hostssl … cert comes after the handshake
	}
	config.VerifyConnection = func(state tls.ConnectionState) error { return notRevoked(state.VerifiedChains, lists, time.Now()) }
	return config, nil
}

func readLists(file string) ([]*x509.RevocationList, error) {
	rest, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var lists []*x509.RevocationList
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return lists, nil
		}
		list, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			return nil, err
		}
		lists = append(lists, list)
	}
}

// notRevoked wants a current CRL for each issuer of a client's path, as PostgreSQL does, which lists nobody of it.
func notRevoked(chains [][]*x509.Certificate, lists []*x509.RevocationList, now time.Time) error {
	for _, chain := range chains {
		for i, c := range chain[:len(chain)-1] {
			found := false
			for _, list := range lists {
				if !bytes.Equal(list.RawIssuer, c.RawIssuer) || list.CheckSignatureFrom(chain[i+1]) != nil || now.After(list.NextUpdate) {
					continue
				}
				found = true
				if listed(list, c) {
					return errors.New("the certificate is revoked")
				}
			}
			if !found {
				return errors.New("there is no current CRL for " + c.Issuer.String())
			}
		}
	}
	return nil
}

package path_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/internal/pki/cert"
	"chancery/internal/pki/path"
)

// The verifiers that are compared.
const (
	openSSL = "OpenSSL"
	gnuTLS  = "GnuTLS"
	nss     = "NSS"
	golang  = "Go"
	ours    = "Chancery"
)

// verdict is what the verifiers say of one path: nil is accepted.
type verdict map[string]error

// knownDivergences are the disagreements that we understand. A path that has the feature may be accepted by these
// verifiers and refused by the others; any other disagreement fails the test. docs/divergences.md tells them in words.
var knownDivergences = []struct {
	feature  string
	accepted []string // by whom; the others refuse
	why      string
}{
	{"leaf-any-eku", []string{gnuTLS, golang, ours}, "RFC 5280 §4.2.1.12 lets an application refuse anyExtendedKeyUsage, and OpenSSL and NSS do for TLS servers"},
	{"ca-client-eku", []string{nss}, "certutil does not apply an intermediate's extended key usage to what stands below it"},
}

// TestVerifiersAgreeOnRandomPaths has OpenSSL, GnuTLS, NSS, Go and our own path check judge 1,000 random certification
// paths as of a TLS server. The seed is fixed, so that a disagreement can be looked at again.
func TestVerifiersAgreeOnRandomPaths(t *testing.T) {
	t.Parallel()
	count := 1000
	if testing.Short() { // the race detector has nothing to find in other programs
		count = 100
	}
	m := newPathMaker(t, 5280)
	paths := make([]*randomPath, count)
	for i := range paths {
		paths[i] = m.path(t, i)
	}
	verdicts := judge(t, paths)
	accepted, features := 0, map[string]int{}
	for i, v := range verdicts {
		for _, f := range paths[i].features {
			features[f]++
		}
		if v[golang] == nil {
			accepted++
		}
		if !v.agree() && !v.known(paths[i]) {
			t.Errorf("path %d [%s] is judged differently:\n%s", i, paths[i], v)
		}
	}
	t.Logf("%d of %d paths accepted; features: %v", accepted, count, features)
	if accepted < count/3 || accepted > count*4/5 {
		t.Errorf("%d of %d paths were accepted; the mixture proves too little", accepted, count)
	}
	if testing.Short() {
		return
	}
	if len(features) < 24 {
		t.Errorf("only %d features were tried: %v", len(features), features)
	}
	for f, n := range features {
		if n < 5 {
			t.Errorf("feature %s was tried %d times only", f, n)
		}
	}
}

// block is how many paths share an NSS database and a run of openssl.
const block = 50

// judge runs all verifiers over all paths. The programs are run by four workers, a directory each: to fill an NSS database is to
// wait for the disk, meanwhile others verify.
func judge(t *testing.T, paths []*randomPath) []verdict {
	t.Helper()
	verdicts := make([]verdict, len(paths))
	for i, p := range paths {
		verdicts[i] = verdict{golang: verifyGo(t, p), ours: verifyOurs(t, p)}
	}
	var wg sync.WaitGroup
	work := make(chan int)
	for range 4 {
		dir := t.TempDir()
		wg.Go(func() {
			for first := range work {
				those := paths[first:min(first+block, len(paths))]
				database, err := nssDatabase(t.Context(), t.TempDir(), first, those)
				if err != nil {
					t.Error(err)
					continue
				}
				byOpenSSL, err := verifyOpenSSL(t.Context(), dir, those)
				if err != nil {
					t.Error(err)
					continue
				}
				for i, p := range those {
					v := verdicts[first+i]
					v[openSSL], v[gnuTLS], v[nss] = byOpenSSL[i], verifyGnuTLS(t.Context(), dir, p), verifyNSS(t.Context(), database, first+i)
				}
			}
		})
	}
	for first := 0; first < len(paths); first += block {
		work <- first
	}
	close(work)
	wg.Wait()
	return verdicts
}

// agree reports whether all verifiers say the same.
func (v verdict) agree() bool {
	for _, err := range v {
		if (err == nil) != (v[golang] == nil) {
			return false
		}
	}
	return len(v) == 5
}

// known reports whether the disagreement is one that we understand.
func (v verdict) known(p *randomPath) bool {
	for _, k := range knownDivergences {
		matches := p.has(k.feature)
		for by, err := range v {
			matches = matches && (err == nil) == slices.Contains(k.accepted, by)
		}
		if matches {
			return true
		}
	}
	return false
}

func (v verdict) String() string {
	var b strings.Builder
	for _, by := range slices.Sorted(maps.Keys(v)) {
		fmt.Fprintf(&b, "  %s: %v\n", by, v[by])
	}
	return b.String()
}

func verifyGo(t *testing.T, p *randomPath) error {
	t.Helper()
	chain := p.certificates(t)
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(chain[len(chain)-1])
	for _, c := range chain[1 : len(chain)-1] {
		between.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: serverAuth})
	return err
}

// verifyOpenSSL has one process judge the leaves of paths, since starting it costs far more than what it judges. The paths' names differ,
// so that no path can be completed by what belongs to another.
func verifyOpenSSL(ctx context.Context, dir string, paths []*randomPath) ([]error, error) {
	var roots, between [][]byte
	args := []string{"verify", "-purpose", "sslserver", "-no-CApath", "-no-CAstore", "-CAfile", filepath.Join(dir, "roots.pem"),
		"-untrusted", filepath.Join(dir, "between.pem")}
	for i, p := range paths {
		last := len(p.ders) - 1
		roots, between = append(roots, p.ders[last]), append(between, p.ders[1:last]...)
		leaf := fmt.Sprintf("leaf%d.pem", i)
		write(dir, leaf, pemOf(p.ders[0]))
		args = append(args, leaf)
	}
	write(dir, "roots.pem", pemOf(roots...))
	write(dir, "between.pem", pemOf(between...))
	c := exec.CommandContext(ctx, "openssl", args...)
	var accepted, refused bytes.Buffer
	c.Dir, c.Stdout, c.Stderr = dir, &accepted, &refused
	err := c.Run() // its status says only whether all are accepted
	if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && (!ok || !exit.Exited()) {
		return nil, fmt.Errorf("openssl: %w: %s", err, &refused)
	}
	verdicts := make([]error, len(paths))
	for i := range paths {
		why, refuses := refusal(refused.String(), i)
		if refuses == bytes.Contains(accepted.Bytes(), fmt.Appendf(nil, "leaf%d.pem: OK\n", i)) {
			return nil, fmt.Errorf("openssl says nothing clear about path %d of the block: %s%s", i, &accepted, &refused)
		}
		if refuses {
			verdicts[i] = fmt.Errorf("openssl: %s", why)
		}
	}
	return verdicts, nil
}

// refusal is why openssl verify refuses a leaf, if it does: what it says since the last leaf that it refused.
func refusal(said string, leaf int) (why string, refuses bool) {
	const end = ": verification failed\n"
	before, _, refuses := strings.Cut(said, fmt.Sprintf("error leaf%d.pem%s", leaf, end))
	if i := strings.LastIndex(before, end); i >= 0 {
		before = before[i+len(end):]
	}
	return before, refuses
}

func verifyGnuTLS(ctx context.Context, dir string, p *randomPath) error {
	last := len(p.ders) - 1
	write(dir, "anchor.pem", pemOf(p.ders[last]))
	write(dir, "chain.pem", pemOf(p.ders[:last]...))
	return run(ctx, "certtool", "--verify", "--verify-purpose", "1.3.6.1.5.5.7.3.1", "--load-ca-certificate", filepath.Join(dir, "anchor.pem"),
		"--infile", filepath.Join(dir, "chain.pem"))
}

// nssDatabase puts paths in a new NSS database in a directory: the roots trusted for servers, the rest not.
func nssDatabase(ctx context.Context, dir string, first int, paths []*randomPath) (string, error) {
	if err := run(ctx, "certutil", "-N", "-d", "sql:"+dir, "--empty-password"); err != nil {
		return "", err
	}
	var add bytes.Buffer
	for i, p := range paths {
		for level, der := range p.ders {
			trust := ",,"
			if level == len(p.ders)-1 {
				trust = "CT,,"
			}
			file := filepath.Join(dir, fmt.Sprintf("%d-%d.der", i, level))
			write(dir, filepath.Base(file), der)
			fmt.Fprintf(&add, "-A -d sql:%s -n path%d-%d -t %s -i %s\n", dir, first+i, level, trust, file)
		}
	}
	write(dir, "add", add.Bytes())
	return "sql:" + dir, run(ctx, "certutil", "-B", "-d", "sql:"+dir, "-i", filepath.Join(dir, "add"))
}

func verifyNSS(ctx context.Context, database string, n int) error {
	return run(ctx, "certutil", "-V", "-d", database, "-n", fmt.Sprintf("path%d-0", n), "-u", "V", "-e")
}

func write(dir, name string, content []byte) {
	if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
		panic(err)
	}
}

func run(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return nil
}

// verifyOurs gives our check the intermediates in whatever order they came, as a server sends them.
func verifyOurs(t *testing.T, p *randomPath) error {
	t.Helper()
	chain := p.certificates(t)
	last := len(chain) - 1
	_, err := path.Build(chain[0], chain[1:last], chain[last:], path.Options{
		Time: time.Now(), ExtKeyUsages: []asn1.ObjectIdentifier{cert.OIDServerAuth},
	})
	return err
}

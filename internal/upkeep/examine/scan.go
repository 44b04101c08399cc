package examine

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"chancery/internal/upkeep/finding"
)

// Found is a certificate that a scan found, or something that was named and shows none.
type Found struct {
	Where     string    `json:"where"`
	Number    int       `json:"number,omitempty"` // of the certificate in its file, from 1
	Subject   string    `json:"subject,omitempty"`
	Names     []string  `json:"names,omitempty"`
	Issuer    string    `json:"issuer,omitempty"`
	Serial    string    `json:"serial,omitempty"`
	SHA256    string    `json:"sha256,omitempty"`
	CA        bool      `json:"ca,omitempty"`
	Ours      string    `json:"ours,omitempty"` // the issuer of the authority that issued it
	NotBefore time.Time `json:"not_before,omitzero"`
	NotAfter  time.Time `json:"not_after,omitzero"`
	Problems  []string  `json:"problems,omitempty"` // rules that are broken
	Message   string    `json:"message,omitempty"`  // of the gravest
}

// ScanOptions are how a scan goes.
type ScanOptions struct {
	Authority *Authority // says which are ours; nil where none is asked
	Parallel  int        // connections at a time; 64 where it is 0
	Timeout   time.Duration
	StartTLS  string
	Done      func() // called for each target that was looked at, by several goroutines
}

// Scanned is what came of a scan.
type Scanned struct {
	Found  []Found // by the end of their validity, those without a certificate last
	Looked int
	Closed int // ports at which nothing answers
	Plain  int // ports that are open and speak no TLS
	Left   int // that were found beyond the most that is listed
}

// mostFound bounds what one scan lists.
const mostFound = 250_000

// MostParallel bounds the connections that are made at a time.
const MostParallel = 512

// Scan looks at each target once.
func Scan(ctx context.Context, targets []Target, o ScanOptions, now time.Time) (*Scanned, error) {
	if o.Parallel <= 0 {
		o.Parallel = 64
	}
	if o.Timeout <= 0 {
		o.Timeout = 3 * time.Second
	}
	if o.Authority != nil {
		if err := o.Authority.load(ctx); err != nil {
			return nil, fmt.Errorf("ask the authority for its issuers: %w", err)
		}
	}
	s := &scan{options: o, now: now, result: &Scanned{Looked: len(targets)}}
	work := make(chan Target)
	var group sync.WaitGroup
	for range min(o.Parallel, MostParallel, max(1, len(targets))) {
		group.Go(func() {
			for t := range work {
				s.look(ctx, t)
				if o.Done != nil {
					o.Done()
				}
			}
		})
	}
	for _, t := range targets {
		select {
		case work <- t:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
	}
	close(work)
	group.Wait()
	slices.SortStableFunc(s.result.Found, byEnd)
	return s.result, ctx.Err()
}

func byEnd(a, b Found) int {
	if a.NotAfter.IsZero() != b.NotAfter.IsZero() {
		if a.NotAfter.IsZero() {
			return 1
		}
		return -1
	}
	if c := a.NotAfter.Compare(b.NotAfter); c != 0 {
		return c
	}
	if c := strings.Compare(a.Where, b.Where); c != 0 {
		return c
	}
	return a.Number - b.Number
}

type scan struct {
	options ScanOptions
	now     time.Time

	mu     sync.Mutex
	result *Scanned // guarded by mu
}

func (s *scan) add(found ...Found) {
	s.mu.Lock()
	defer s.mu.Unlock()
	room := max(0, mostFound-len(s.result.Found))
	s.result.Left += max(0, len(found)-room)
	s.result.Found = append(s.result.Found, found[:min(room, len(found))]...)
}

func (s *scan) look(ctx context.Context, t Target) {
	switch {
	case ctx.Err() != nil:
	case t.Err != nil:
		s.add(Found{Where: clean(t.File), Problems: []string{"file.unreadable"}, Message: clean(t.Err.Error())})
	case t.File != "":
		s.file(ctx, t)
	default:
		s.port(ctx, t)
	}
}

func (s *scan) port(ctx context.Context, t Target) {
	found, served, err := Port(ctx, t.Address, PortOptions{
		StartTLS: s.options.StartTLS, Authority: s.options.Authority, Timeout: s.options.Timeout, Offline: true, Quick: true, TrustOurs: true,
	}, s.now)
	if err != nil {
		if ctx.Err() == nil {
			s.add(Found{Where: clean(t.Address), Problems: []string{"wire.connect.unreachable"}, Message: clean(err.Error())})
		}
		return
	}
	if served == nil {
		s.without(t, found)
		return
	}
	f := s.of(ctx, served.Path[0], t.Address)
	f.Problems, f.Message = problems(found)
	s.add(f)
}

// without counts a port that showed no certificate, and tells of it where it was named.
func (s *scan) without(t Target, found []finding.Finding) {
	rules, message := problems(found)
	s.mu.Lock()
	switch {
	case slices.Contains(rules, "wire.tls.none"):
		s.result.Plain++
	case slices.ContainsFunc(rules, func(r string) bool { return strings.HasPrefix(r, "wire.connect.") }):
		s.result.Closed++
	default:
		t.Named = true // it speaks TLS, and something is wrong with it
	}
	s.mu.Unlock()
	if t.Named {
		s.add(Found{Where: clean(t.Address), Problems: rules, Message: message})
	}
}

// problems are the rules that are broken: all that are errors, and the ends that come near.
func problems(found []finding.Finding) (rules []string, message string) {
	for _, f := range found {
		near := strings.HasSuffix(f.Check, ".times.ends")
		if f.Level != finding.Error && !near || slices.Contains(rules, f.Check) {
			continue
		}
		rules = append(rules, f.Check)
		if message == "" || f.Level == finding.Error && strings.HasSuffix(rules[0], ".times.ends") {
			message = f.Message
		}
	}
	return rules, message
}

// of describes a certificate.
func (s *scan) of(ctx context.Context, c *x509.Certificate, where string) Found {
	sum := sha256.Sum256(c.Raw)
	f := Found{
		Where: clean(where), Subject: subject(c), Issuer: issuerName(c), Serial: serial(c), SHA256: hex.EncodeToString(sum[:]), CA: c.IsCA,
		NotBefore: c.NotBefore.UTC(), NotAfter: c.NotAfter.UTC(),
	}
	for _, n := range c.DNSNames[:min(20, len(c.DNSNames))] {
		f.Names = append(f.Names, clean(n))
	}
	for _, a := range c.IPAddresses[:min(20, len(c.IPAddresses))] {
		f.Names = append(f.Names, a.String())
	}
	if a := s.options.Authority; a != nil {
		if issuer, err := a.Issuer(ctx, c); err == nil && issuer != nil {
			f.Ours = issuer.Name
		}
	}
	return f
}

// mostOfFile bounds the certificates of one file that are listed.
const mostOfFile = 1000

func (s *scan) file(ctx context.Context, t Target) {
	found, err := File(ctx, t.File, FileOptions{}, s.now)
	if err != nil {
		s.add(Found{Where: clean(t.File), Problems: []string{"file.unreadable"}, Message: clean(err.Error())})
		return
	}
	var held *Held
	if text, err := readFile(t.File, mostFile); err == nil {
		held, err = Read(text, nil)
		if err != nil && held == nil && !t.Named && !errors.Is(err, errTooLarge) && !hasPEM(text) {
			return // a file whose name means something else
		}
	}
	rules, message := problems(slices.DeleteFunc(found, ofOne))
	for _, f := range found {
		if f.Check == "file.password" {
			rules, message = append(rules, f.Check), orElse(message, f.Message)
		}
	}
	if held == nil || len(held.Certificates) == 0 {
		if len(rules) > 0 || t.Named {
			s.add(Found{Where: clean(t.File), Problems: rules, Message: message})
		}
		return
	}
	for i, c := range held.Certificates[:min(mostOfFile, len(held.Certificates))] {
		f := s.of(ctx, c, t.File)
		if len(held.Certificates) > 1 {
			f.Number = i + 1
		}
		r := &report{where: "file", object: t.File}
		r.lookAtTimes(c, s.now, "")
		r.lookAtStrength(c)
		f.Problems, f.Message = problems(r.found)
		if i == 0 {
			f.Problems, f.Message = append(f.Problems, rules...), orElse(f.Message, message)
		}
		s.add(f)
	}
}

// ofOne reports whether a finding is about one certificate and not about its file.
func ofOne(f finding.Finding) bool {
	return strings.HasPrefix(f.Check, "file.times.") || f.Check == "file.key.weak" || f.Check == "file.signature.weak"
}

package profile

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"math/big"
	"math/bits"
	"slices"
	"strings"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/certtool"
	"chancery/internal/pki/keyfile"
	"chancery/internal/pki/root"
)

// Sample is a certificate as a profile makes it, under an issuer that exists for a moment, and what zlint says of it.
type Sample struct {
	Algorithm string // of the subject's key, as cert.KeyAlgorithm names it
	DER       []byte
	Findings  []Finding
	Warnings  []string // our own lints that the profile turned off and the sample fails
}

// Text is the sample in certtool's sections.
func (s *Sample) Text() (string, error) {
	var b strings.Builder
	err := certtool.Print(&b, s.DER)
	return b.String(), err
}

// Samples makes a certificate for each kind of key that the profile allows, for a caller of its most generous rule.
func Samples(p *cert.Profile, now time.Time) ([]Sample, error) {
	caKey, err := keyfile.Generate(keyfile.ECDSA, 256)
	if err != nil {
		return nil, fmt.Errorf("make the sample's issuer: %w", err)
	}
	above, err := root.New(root.Options{Subject: cert.CommonName("Sample issuer"), PathLen: -1}, caKey, now)
	if err != nil {
		return nil, fmt.Errorf("make the sample's issuer: %w", err)
	}
	issuer := &cert.Issuer{
		Certificate: above.Certificate, CRLDistributionPoints: []string{"http://pki.example.com/crl/sample.crl"},
		OCSPServers: []string{"http://pki.example.com/ocsp"}, CAIssuers: []string{"http://pki.example.com/ca/sample.cer"},
	}
	request, err := sampleRequest(p)
	if err != nil {
		return nil, err
	}
	var samples []Sample
	for _, k := range sampleKeys(p) {
		public, err := k.public()
		if err != nil {
			return nil, fmt.Errorf("make the sample's key: %w", err)
		}
		s, err := sample(p, *request, issuer, public, caKey, now)
		if err != nil {
			return nil, err
		}
		samples = append(samples, *s)
	}
	if len(samples) == 0 {
		return nil, fault.New(fault.Invalid, "profile %q allows no kind of key", p.Name)
	}
	return samples, nil
}

func sample(p *cert.Profile, request cert.Request, issuer *cert.Issuer, public crypto.PublicKey, caKey crypto.Signer,
	now time.Time) (*Sample, error) {
	var err error
	if request.SPKI, err = cert.MarshalPublicKey(public); err != nil {
		return nil, err
	}
	linted, err := p.Build(request, issuer, now)
	if err != nil {
		return nil, fmt.Errorf("the profile refuses what its own rules name: %w", err)
	}
	s := &Sample{Algorithm: cert.KeyAlgorithm(public)}
	for _, w := range linted.Warnings() {
		s.Warnings = append(s.Warnings, w.Error())
	}
	if s.DER, err = linted.Sign(caKey); err != nil {
		return nil, fmt.Errorf("sign the sample: %w", err)
	}
	s.Findings, err = Lint(s.DER)
	for i, f := range s.Findings {
		if !f.Warning && slices.Contains(p.Lints.ZLintOff, f.Lint) {
			s.Findings[i].Warning, s.Findings[i].Text = true, f.Text+" (the profile turned it off)"
		}
	}
	return s, err
}

type sampleKey struct {
	algorithm keyfile.Algorithm
	bits      int
}

// public makes a public key. Nobody needs the private half of an RSA one, so its modulus is no product of two primes but
// a number that looks like one: making a real one would take seconds.
func (k sampleKey) public() (crypto.PublicKey, error) {
	if k.algorithm != keyfile.RSA {
		key, err := keyfile.Generate(k.algorithm, k.bits)
		if err != nil {
			return nil, err
		}
		return key.Public(), nil
	}
	smallPrimes := new(big.Int).MulRange(2, 1000) // shares a factor with whatever has one below 1000
	octets := make([]byte, k.bits/8)
	for {
		if _, err := rand.Read(octets); err != nil {
			return nil, err
		}
		octets[0] |= 0x80
		n := new(big.Int).SetBytes(octets)
		if new(big.Int).GCD(nil, nil, n, smallPrimes).Cmp(big.NewInt(1)) == 0 {
			return &rsa.PublicKey{N: n, E: 65537}, nil
		}
	}
}

// sampleKeys are the kinds of key that make certificates of different usages: one curve stands for all.
func sampleKeys(p *cert.Profile) []sampleKey {
	allowed := func(name string) bool { return len(p.Key.Algorithms) == 0 || slices.Contains(p.Key.Algorithms, name) }
	var keys []sampleKey
	for _, size := range []int{256, 384, 521} {
		if allowed(fmt.Sprintf("ecdsa-p%d", size)) {
			keys = append(keys, sampleKey{keyfile.ECDSA, size})
			break
		}
	}
	if allowed("ed25519") {
		keys = append(keys, sampleKey{keyfile.Ed25519, 0})
	}
	if allowed("rsa") {
		keys = append(keys, sampleKey{keyfile.RSA, max(p.Key.RSAMin, 2048)})
	}
	return keys
}

// The names of the sample. A variable of a pattern has one of them, as its place wants.
const (
	sampleHost    = "sample.example.com"
	sampleAddress = "192.0.2.10"
)

// sampleRequest asks for one name of each kind that the most generous rule allows.
func sampleRequest(p *cert.Profile) (*cert.Request, error) {
	rule := slices.MaxFunc(p.Names.Rules, func(a, b cert.NameRule) int { return generosity(a) - generosity(b) })
	caller := cert.Caller{Name: sampleHost, Roles: rule.Roles, Entitlements: map[string][]string{}}
	if len(rule.Callers) > 0 {
		caller.Name = rule.Callers[0]
	}
	fill := func(pattern, value string) string {
		for {
			before, rest, found := strings.Cut(pattern, "${")
			if !found {
				return pattern
			}
			name, after, _ := strings.Cut(rest, "}")
			if name == "caller.name" {
				pattern = before + caller.Name + after
				continue
			}
			caller.Entitlements[name] = []string{value}
			pattern = before + value + after
		}
	}
	request := &cert.Request{Caller: caller, Names: []cert.GeneralName{}, Subject: cert.Name{}}
	add := func(kind string, patterns []string, value string, name func(string) string) error {
		if len(patterns) == 0 {
			return nil
		}
		g, err := cert.ParseGeneralName(kind + ":" + name(fill(patterns[0], value)))
		if err != nil {
			return fmt.Errorf("sample name of %s pattern %q: %w", kind, patterns[0], err)
		}
		request.Names = append(request.Names, g)
		return nil
	}
	wildcard := func(pattern string) string { return "*." + hostOf(pattern) }
	for _, step := range []func() error{
		func() error { return add("dns", rule.DNS, sampleHost, hostOf) },
		func() error { return add("dns", rule.Wildcard, sampleHost, wildcard) },
		func() error { return add("ip", rule.IP, sampleAddress, addressOf) },
		func() error { return add("email", rule.Email, "sample@"+sampleHost, mailboxOf) },
		func() error { return add("uri", rule.URI, "https://"+sampleHost+"/", uriOf) },
		func() error {
			return add("dirname", rule.DirName, "CN="+sampleHost, func(s string) string { return s })
		},
		func() error {
			return add("rid", rule.RegisteredID, "1.3.6.1.4.1.32473.1", func(s string) string { return s })
		},
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	for _, attribute := range []string{"O", "CN"} {
		patterns := rule.Subject[attribute]
		if len(patterns) == 0 || attribute == "CN" && p.Names.CommonName != "subject" {
			continue
		}
		oid, err := cert.ParseAttributeType(attribute)
		if err != nil {
			return nil, err
		}
		value := strings.ReplaceAll(fill(patterns[0], sampleHost), "*", "sample")
		request.Subject = append(request.Subject, cert.RDN{{Type: oid, Value: value}})
	}
	return request, nil
}

// generosity counts the kinds of names that a rule allows.
func generosity(r cert.NameRule) int {
	var kinds uint
	for i, patterns := range [][]string{r.DNS, r.Wildcard, r.IP, r.Email, r.URI, r.DirName, r.RegisteredID} {
		if len(patterns) > 0 {
			kinds |= 1 << i
		}
	}
	return 2*bits.OnesCount(kinds) + min(len(r.Subject), 1)
}

// hostOf makes a DNS name that a pattern matches.
func hostOf(pattern string) string {
	if pattern == "**" {
		return sampleHost
	}
	if rest, deep := strings.CutPrefix(pattern, "**."); deep {
		pattern = "sample." + rest
	} else if strings.HasPrefix(pattern, ".") {
		pattern = "sample" + pattern
	}
	return strings.ReplaceAll(pattern, "*", "sample")
}

// addressOf is the first address of a range.
func addressOf(pattern string) string {
	address, _, ranged := strings.Cut(pattern, "/")
	switch {
	case ranged && address == "0.0.0.0":
		return sampleAddress
	case ranged && address == "::":
		return "2001:db8::10"
	}
	return address
}

func mailboxOf(pattern string) string {
	local, domain, _ := strings.Cut(pattern, "@")
	return strings.ReplaceAll(local, "*", "sample") + "@" + hostOf(domain)
}

func uriOf(pattern string) string {
	if pattern == "**" {
		return "https://" + sampleHost + "/"
	}
	return strings.ReplaceAll(strings.ReplaceAll(pattern, "**", "sample"), "*", "sample")
}

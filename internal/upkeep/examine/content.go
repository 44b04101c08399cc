package examine

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
	"chancery/internal/pki/keyfile"
)

// Held is what a file holds.
type Held struct {
	Kind         string // for people: "PEM: 2 certificates, 1 private key"
	Store        bool   // it is a key store, and Entries are what it holds
	Secret       bool   // it holds a private key, readable or not
	Octets       int
	Entries      []keyfile.Entry
	Certificates []*x509.Certificate
	Keys         []crypto.Signer
	Lists        [][]byte // CRLs, DER
	Requests     [][]byte // DER
	Outside      int      // the first line with text outside PEM blocks, from 1; 0 for none
	Trailing     int      // octets after the first object of a binary file
}

// Read reads a file of whatever kind: PEM, DER, PKCS#7, PKCS#12, JKS; certificates, keys, CRLs, requests. What could be read
// is returned with the error, which has keyfile.ErrPassword in its chain where a password is what is missing.
func Read(text, password []byte) (*Held, error) {
	h := &Held{Octets: len(text)}
	switch {
	case len(bytes.TrimSpace(text)) == 0:
		return nil, fault.New(fault.Invalid, "the file is empty")
	case hasPEM(text):
		return h, h.readPEM(text, password)
	case bytes.HasPrefix(text, []byte{0xfe, 0xed, 0xfe, 0xed}):
		h.Kind, h.Store, h.Secret = "Java key store (JKS)", true, true
		return h, h.readStore(text, password)
	case isPKCS12(text):
		h.Kind, h.Store, h.Secret = "PKCS#12", true, true
		return h, h.readStore(text, password)
	case len(text) > 1 && text[0] == 0x30:
		return h, h.readDER(text, password)
	}
	return nil, fault.New(fault.Invalid, "it is neither PEM nor DER, and no key store: it begins with %q", shorten(clean(string(text[:min(16, len(text))])), 16))
}

// hasPEM reports whether a line begins a PEM block: one within a line, as JSON has it, is none.
func hasPEM(text []byte) bool {
	begin := []byte("-----BEGIN ")
	return bytes.HasPrefix(bytes.TrimPrefix(text, []byte("\xef\xbb\xbf")), begin) || bytes.Contains(text, append([]byte("\n"), begin...)) ||
		bytes.Contains(text, append([]byte("\r"), begin...))
}

// isPKCS12 reports whether a file is a PFX: a SEQUENCE that begins with version 3 (RFC 7292 section 4).
func isPKCS12(text []byte) bool {
	if len(text) < 7 || text[0] != 0x30 {
		return false
	}
	skip := 2 // BER's indefinite length, too
	if text[1] > 0x80 {
		skip += int(text[1] & 0x7f)
	}
	return len(text) > skip+3 && bytes.Equal(text[skip:skip+3], []byte{2, 1, 3})
}

func (h *Held) readStore(text, password []byte) error {
	entries, err := keyfile.DecodeStore(text, password)
	if errors.Is(err, keyfile.ErrPassword) && password == nil {
		if again, empty := keyfile.DecodeStore(text, []byte{}); empty == nil {
			entries, err = again, nil
		}
	}
	h.Entries = entries
	keys, trusted := 0, 0
	for _, e := range entries {
		h.Certificates = append(h.Certificates, e.Chain...)
		if e.Key != nil {
			h.Keys = append(h.Keys, e.Key)
			keys++
		} else {
			trusted++
		}
	}
	if err == nil {
		h.Secret = keys > 0
		h.Kind += fmt.Sprintf(": %s, %s", count(keys, "key with its path", "keys with their paths"), count(trusted, "trusted certificate", "trusted certificates"))
	}
	return err
}

// mostBlocks bounds the PEM blocks of a file, and mostKeys those that are opened: a sealed one costs what its maker wanted.
const (
	mostBlocks = 10_000
	mostKeys   = 8
)

// readPEM reads the blocks, and says on which line something stands that is none.
func (h *Held) readPEM(text, password []byte) error {
	h.Outside = outside(text)
	var wrong error
	others, blocks, keys := []string{}, 0, 0
	rest := text
	for {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		if blocks++; blocks > mostBlocks {
			return fault.New(fault.TooLarge, "the file has more than %d PEM blocks", mostBlocks)
		}
		switch {
		case b.Type == "X509 CRL":
			h.Lists = append(h.Lists, b.Bytes)
		case b.Type == "CERTIFICATE REQUEST", b.Type == "NEW CERTIFICATE REQUEST":
			h.Requests = append(h.Requests, b.Bytes)
		case strings.HasSuffix(b.Type, "PRIVATE KEY"):
			h.Secret = true
			if keys++; keys > mostKeys {
				return fault.New(fault.TooLarge, "the file has more than %d private keys", mostKeys)
			}
			key, err := keyfile.ParsePrivateKey(pem.EncodeToMemory(b), password)
			if err != nil {
				wrong = err
				continue
			}
			h.Keys = append(h.Keys, key)
		case b.Type == "CERTIFICATE", b.Type == "X509 CERTIFICATE", b.Type == "TRUSTED CERTIFICATE", b.Type == "PKCS7", b.Type == "CMS":
		default:
			others = append(others, shorten(clean(b.Type), 40))
		}
	}
	if bytes.Contains(text, []byte("PRIVATE KEY-----")) {
		h.Secret = true
	}
	certificates, err := keyfile.ParseCertificates(text)
	h.Certificates = certificates
	if err != nil && (strings.Contains(string(text), "CERTIFICATE-----") && len(h.Requests) == 0 || len(h.Lists)+len(h.Keys)+len(h.Requests)+len(others) == 0) && wrong == nil {
		wrong = err
	}
	h.Kind = "PEM: " + h.counted(others)
	return wrong
}

func (h *Held) counted(others []string) string {
	var parts []string
	for _, p := range []struct {
		n         int
		one, many string
	}{
		{len(h.Certificates), "certificate", "certificates"}, {len(h.Keys), "private key", "private keys"}, {len(h.Lists), "CRL", "CRLs"},
		{len(h.Requests), "certification request", "certification requests"},
	} {
		if p.n > 0 {
			parts = append(parts, count(p.n, p.one, p.many))
		}
	}
	parts = append(parts, others[:min(3, len(others))]...)
	if len(parts) == 0 {
		return "nothing that can be read"
	}
	return strings.Join(parts, ", ")
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// outside is the number of the first line that is neither in a PEM block nor empty; 0 where there is none. What it says is not
// told: certtool writes the numbers of a private key there.
func outside(text []byte) int {
	inside, number := false, 0
	for line := range bytes.Lines(text) {
		number++
		line = bytes.TrimSpace(bytes.TrimPrefix(line, []byte("\xef\xbb\xbf")))
		switch {
		case bytes.HasPrefix(line, []byte("-----BEGIN ")):
			inside = true
		case bytes.HasPrefix(line, []byte("-----END ")):
			inside = false
		case !inside && len(line) > 0:
			return number
		}
	}
	return 0
}

// readDER reads a binary file by trying what it may be.
func (h *Held) readDER(text, password []byte) error {
	in := cryptobyte.String(text)
	var first cryptobyte.String
	if !in.ReadASN1Element(&first, asn1.SEQUENCE) {
		if certificates, err := keyfile.ParseCertificates(text); err == nil { // BER, as NSS writes it
			h.Certificates, h.Kind = certificates, "PKCS#7: "+h.counted(nil)
			return nil
		}
		return fault.New(fault.Invalid, "it begins as DER and is not whole")
	}
	if certificates, err := keyfile.ParseCertificates(text); err == nil {
		h.Certificates = certificates
		h.Kind = "DER: " + h.counted(nil)
		return nil
	}
	h.Trailing = len(in)
	if certificates, err := keyfile.ParseCertificates(first); err == nil {
		h.Certificates = certificates
	} else if _, err := crl.Parse(first); err == nil {
		h.Lists = [][]byte{first}
	} else if _, err := x509.ParseRevocationList(first); err == nil {
		h.Lists = [][]byte{first}
	} else if _, err := x509.ParseCertificateRequest(first); err == nil {
		h.Requests = [][]byte{first}
	} else {
		key, err := keyfile.ParsePrivateKey(first, password)
		h.Secret = err == nil || errors.Is(err, keyfile.ErrPassword)
		if err != nil && !h.Secret {
			return fault.New(fault.Invalid, "it is DER, and neither a certificate, a CRL, a request nor a private key")
		}
		if err != nil {
			h.Kind = "DER: an encrypted private key"
			return err
		}
		h.Keys = []crypto.Signer{key}
	}
	h.Kind = "DER: " + h.counted(nil)
	return nil
}

// store judges the entries of a key store.
func (l *look) store(ctx context.Context, held *Held) {
	for _, e := range held.Entries {
		if len(e.Chain) == 0 {
			continue
		}
		if e.Key == nil {
			l.lookAtTimes(e.Chain[0], l.now, "")
			l.lookAtStrength(e.Chain[0])
			continue
		}
		l.decide(e.Chain[0])
		if err := keyfile.CheckPair(e.Key.Public(), e.Chain[0]); err != nil {
			l.tell("pair", "two public keys", fmt.Sprintf("in entry %q the key does not belong to %s", shorten(clean(e.Alias), 60), named(e.Chain[0])), "")
		} else {
			l.ok("pair", "entry %q: the key belongs to %s", shorten(clean(e.Alias), 60), named(e.Chain[0]))
		}
		chain := l.order(e.Chain)
		for _, c := range chain {
			l.lookAtTimes(c, l.now, "")
			l.lookAtStrength(c)
		}
		l.leaf(e.Chain[0])
		if l.options.Trust != nil {
			l.reach(ctx, chain, l.options.Trust, nil, nil, l.now)
		}
	}
	if l.options.Key != "" && len(held.Certificates) > 0 {
		l.pair(held)
	}
}

// lists judges CRLs.
func (l *look) lists(held *Held) {
	var issuers []*x509.Certificate
	issuers = append(issuers, held.Certificates...)
	if t := l.options.Trust; t != nil {
		issuers = append(append(issuers, t.Anchors...), t.Others...)
	}
	for _, der := range held.Lists {
		list, err := crl.Parse(der)
		if err != nil {
			l.tell("format", shorten(clean(sentence(err)), 200), "the CRL cannot be used", "openssl crl -noout -text -in "+quoted(l.path))
			continue
		}
		by := "its issuer"
		if n, err := cert.ParseNameDER(list.RawIssuer); err == nil {
			by = shorten(clean(n.String()), 120)
		}
		switch {
		case l.now.After(list.NextUpdate):
			l.tell("crl.stale", "nextUpdate "+stamp(list.NextUpdate), fmt.Sprintf("the CRL of %s is %s too old", by, span(l.now.Sub(list.NextUpdate))),
				"chancery crl export F --issuer ISSUER")
		case list.ThisUpdate.After(l.now):
			l.tell("crl.future", "thisUpdate "+stamp(list.ThisUpdate), fmt.Sprintf("the CRL of %s is not valid for another %s", by, span(list.ThisUpdate.Sub(l.now))), "timedatectl")
		default:
			l.ok("crl", "the CRL of %s has %s, and is fresh for another %s", by, count(list.Count, "entry", "entries"), span(list.NextUpdate.Sub(l.now)))
		}
		if list.BaseNumber != nil || list.IDP != nil {
			l.tell("crl.partial", "issuingDistributionPoint or deltaCRLIndicator", fmt.Sprintf("the CRL of %s does not list all that it revoked", by), "")
		}
		l.listIssuer(list, issuers, by)
	}
}

func (l *look) listIssuer(list *crl.List, issuers []*x509.Certificate, by string) {
	var wrong error
	for _, c := range issuers {
		if !bytes.Equal(c.RawSubject, list.RawIssuer) {
			continue
		}
		if wrong = list.CheckIssuer(c); wrong == nil {
			l.ok("crl.issuer", "signed by %s", by)
			return
		}
	}
	if wrong != nil {
		l.tell("crl.issuer", shorten(sentence(wrong), 200), fmt.Sprintf("%s, as it is known here, did not sign the CRL", by), "")
	}
}

// requests judges certification requests.
func (l *look) requests(held *Held) {
	for _, der := range held.Requests {
		csr, err := cert.ParseCSR(der)
		if err != nil {
			l.tell("csr.refused", shorten(clean(sentence(err)), 300), "the request breaks a rule", "")
			continue
		}
		l.ok("csr", "a request for %s, signed by its key (%s)", shorten(clean(csr.Subject.String()), 120), cert.KeyAlgorithm(csr.PublicKey))
		keys := held.Keys
		if l.options.Key != "" {
			beside := l.beside()
			if beside == nil {
				continue
			}
			keys = beside.Keys
		}
		if len(keys) == 0 {
			continue
		}
		public, ok := csr.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
		if ok && public.Equal(keys[0].Public()) {
			l.ok("pair", "the key is that of the request")
		} else {
			l.tell("pair", "two public keys", "the key is not that of the request", "chancery key id "+quoted(l.path))
		}
	}
}

// lookAtKey judges a key that stands by itself.
func (l *look) lookAtKey(public crypto.PublicKey) {
	if err := cert.CheckPublicKey(public); err != nil {
		l.tell("key.weak", cert.KeyAlgorithm(public), sentence(err), "chancery key generate --algorithm ecdsa-p256 --out K")
		return
	}
	l.ok("key", "%s", cert.KeyAlgorithm(public))
}

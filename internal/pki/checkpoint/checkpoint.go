// Package checkpoint is the form of the audit checkpoint, and its verification: a short signed text that says where every
// node's hash chain of events ends. Whoever keeps one can later tell whether the record behind it is still the same.
//
// The form follows the signed notes of transparency logs: lines of text, an empty line, and signature lines. It reads
//
//	chancery audit checkpoint 1
//	authority 0197c6a8-6c58-7a4e-8f57-c6dbd7f1d9a5
//	number 42
//	time 2026-11-21T20:00:00.000000Z
//	previous 5f3c…
//	chain node-a 1207 9a41…
//	chain node-b 88 04de…
//
//	— 1f0c22d94a6e07b5 MEUCIQ…
//
// The first line separates these signatures from those over anything else. previous is the SHA-256 of the whole checkpoint
// before, zeros in the first one. Chains are sorted by node, and a chain that was in one checkpoint is in every later one.
// A signature line names its key by the first 8 octets of the SHA-256 of its SubjectPublicKeyInfo; there may be up to four,
// so that a new key can sign beside an old one.
//
// Divergence from signed notes: ECDSA keys sign too, and the key is named by its SubjectPublicKeyInfo.
//
// There is one encoding of each checkpoint: Parse refuses what Sign would not have written. Nothing here does I/O.
package checkpoint

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
)

// Limits of what is parsed.
const (
	MaxSize       = 1 << 20
	maxSignatures = 4
	maxName       = 255
)

const (
	label      = "chancery audit checkpoint 1\n"
	dash       = "— "
	timeFormat = "2006-01-02T15:04:05.000000Z"
)

// Head is where one node's chain ends: the sequence number and the hash of its last event.
type Head struct {
	Node string
	Seq  int64
	Hash [32]byte
}

// Checkpoint is what is signed.
type Checkpoint struct {
	Authority string
	Number    int64 // from 1
	Time      time.Time
	Previous  [32]byte // Hash of the checkpoint before; zero in the first
	Heads     []Head
}

// Signed is a checkpoint that was read, with its signatures, which are not verified yet.
type Signed struct {
	Checkpoint
	Raw []byte

	text       []byte // what the signatures are over
	signatures []signature
}

type signature struct {
	key   string // hexadecimal
	value []byte
}

// Hash identifies a signed checkpoint: the next one names it.
func Hash(signed []byte) [32]byte { return sha256.Sum256(signed) }

// Sign returns the signed text of c.
func (c *Checkpoint) Sign(signers ...crypto.Signer) ([]byte, error) {
	if len(signers) == 0 || len(signers) > maxSignatures {
		return nil, fmt.Errorf("sign audit checkpoint %d: %d keys, want 1 to %d", c.Number, len(signers), maxSignatures)
	}
	text, err := c.text()
	if err != nil {
		return nil, fmt.Errorf("encode audit checkpoint %d: %w", c.Number, err)
	}
	out := append(slices.Clone(text), '\n')
	for _, signer := range signers {
		algorithm, err := cert.DefaultAlgorithm(signer.Public())
		if err != nil {
			return nil, fmt.Errorf("sign audit checkpoint %d: %w", c.Number, err)
		}
		id, err := keyID(signer.Public())
		if err != nil {
			return nil, fmt.Errorf("sign audit checkpoint %d: %w", c.Number, err)
		}
		value, err := algorithm.Sign(signer, text)
		if err != nil {
			return nil, fmt.Errorf("sign audit checkpoint %d: %w", c.Number, err)
		}
		out = append(out, dash+id+" "+base64.StdEncoding.EncodeToString(value)+"\n"...)
	}
	return out, nil
}

// text encodes c. It refuses what could be read in two ways.
func (c *Checkpoint) text() ([]byte, error) {
	if err := checkName("authority", c.Authority); err != nil {
		return nil, err
	}
	if c.Number < 1 {
		return nil, fmt.Errorf("number %d is not 1 or more", c.Number)
	}
	if (c.Number == 1) != (c.Previous == [32]byte{}) {
		return nil, fmt.Errorf("number %d with previous %x: the first one, and no other, has zeros", c.Number, c.Previous)
	}
	if y := c.Time.UTC().Year(); y < 1970 || y > 9999 {
		return nil, fmt.Errorf("time %s is out of range", c.Time)
	}
	heads := slices.SortedFunc(slices.Values(c.Heads), func(a, b Head) int { return cmp.Compare(a.Node, b.Node) })
	var b bytes.Buffer
	fmt.Fprintf(&b, "%sauthority %s\nnumber %d\ntime %s\nprevious %x\n", label, c.Authority, c.Number,
		c.Time.UTC().Format(timeFormat), c.Previous)
	for i, h := range heads {
		if err := checkName("node", h.Node); err != nil {
			return nil, err
		}
		if i > 0 && heads[i-1].Node == h.Node {
			return nil, fmt.Errorf("node %s has two chains", h.Node)
		}
		if h.Seq < 1 {
			return nil, fmt.Errorf("chain of node %s ends at %d; one without events is left out", h.Node, h.Seq)
		}
		fmt.Fprintf(&b, "chain %s %d %x\n", h.Node, h.Seq, h.Hash)
	}
	if b.Len() > MaxSize/2 {
		return nil, fmt.Errorf("%d chains are too many for one text", len(heads))
	}
	return b.Bytes(), nil
}

func checkName(what, name string) error {
	if name == "" || len(name) > maxName {
		return fmt.Errorf("%s %.40q is not of 1 to %d octets", what, name, maxName)
	}
	for _, c := range []byte(name) {
		if c <= ' ' || c >= 0x7f {
			return fmt.Errorf("%s %q has an octet that is not a visible ASCII character", what, name)
		}
	}
	return nil
}

// Parse reads a signed checkpoint. It refuses every text but the one that Sign writes; it verifies no signature.
func Parse(raw []byte) (*Signed, error) {
	if len(raw) > MaxSize {
		return nil, fault.New(fault.TooLarge, "audit checkpoint of %d octets is over the limit of %d", len(raw), MaxSize)
	}
	s := &Signed{Raw: raw}
	text, notes, ok := bytes.Cut(raw, []byte("\n\n"))
	if !ok {
		return nil, refuse("has no empty line between text and signatures")
	}
	s.text = append(slices.Clone(text), '\n')
	if err := s.parseText(string(s.text)); err != nil {
		return nil, err
	}
	again, err := s.Checkpoint.text()
	if err != nil {
		return nil, refuse("%w", err)
	}
	if !bytes.Equal(again, s.text) {
		return nil, refuse("is not in the one form that it can have")
	}
	if err := s.parseSignatures(string(notes)); err != nil {
		return nil, err
	}
	return s, nil
}

func refuse(format string, args ...any) error {
	return fault.New(fault.Invalid, "audit checkpoint "+format, args...)
}

func (s *Signed) parseText(text string) error {
	rest, ok := strings.CutPrefix(text, label)
	if !ok {
		return refuse("does not begin with %q", strings.TrimSpace(label))
	}
	for line := range strings.Lines(rest) {
		fields := strings.Split(strings.TrimSuffix(line, "\n"), " ")
		if err := s.parseLine(fields); err != nil {
			return refuse("line %.80q: %w", line, err)
		}
	}
	return nil
}

// parseLine takes the lines in any order and number; that text writes the same octets again is what makes it strict.
func (s *Signed) parseLine(fields []string) (err error) {
	switch {
	case fields[0] == "authority" && len(fields) == 2:
		s.Authority = fields[1]
	case fields[0] == "number" && len(fields) == 2:
		s.Number, err = strconv.ParseInt(fields[1], 10, 64)
	case fields[0] == "time" && len(fields) == 2:
		s.Time, err = time.Parse(timeFormat, fields[1])
	case fields[0] == "previous" && len(fields) == 2:
		err = decodeHash(&s.Previous, fields[1])
	case fields[0] == "chain" && len(fields) == 4:
		h := Head{Node: fields[1]}
		if h.Seq, err = strconv.ParseInt(fields[2], 10, 64); err == nil {
			err = decodeHash(&h.Hash, fields[3])
		}
		s.Heads = append(s.Heads, h)
	default:
		err = fmt.Errorf("%d words that begin with %q are no line of a checkpoint", len(fields), fields[0])
	}
	return err
}

func decodeHash(hash *[32]byte, text string) error {
	if len(text) != 2*len(hash) {
		return fmt.Errorf("a hash has %d digits, not %d", 2*len(hash), len(text))
	}
	_, err := hex.Decode(hash[:], []byte(text))
	return err
}

func (s *Signed) parseSignatures(notes string) error {
	for line := range strings.Lines(notes) {
		body, ok := strings.CutPrefix(line, dash)
		id, text, ok2 := strings.Cut(strings.TrimSuffix(body, "\n"), " ")
		value, err := base64.StdEncoding.Strict().DecodeString(text)
		if !ok || !ok2 || err != nil || len(value) == 0 || !isKeyID(id) || !strings.HasSuffix(line, "\n") ||
			strings.ContainsAny(text, "\r\n") {
			return refuse("signature line %.80q is not a dash, a key and base64", line)
		}
		s.signatures = append(s.signatures, signature{id, value})
	}
	if len(s.signatures) == 0 || len(s.signatures) > maxSignatures {
		return refuse("has %d signatures, not 1 to %d", len(s.signatures), maxSignatures)
	}
	return nil
}

// Verify checks that the holder of one of the keys signed s.
func (s *Signed) Verify(keys ...crypto.PublicKey) error {
	for _, key := range keys {
		id, err := keyID(key)
		if err != nil {
			return err
		}
		algorithm, err := cert.DefaultAlgorithm(key)
		if err != nil {
			return err
		}
		for _, note := range s.signatures {
			if note.key == id && algorithm.Verify(key, s.text, note.value) == nil {
				return nil
			}
		}
	}
	return fault.New(fault.Invalid, "audit checkpoint %d has no signature by a key of the authority", s.Number)
}

// CheckSuccessor checks that s may follow seen, which its keeper holds: nothing that seen says is gone or different. What
// it cannot see, events that were changed between the two, verification of the chains against both does.
func (s *Signed) CheckSuccessor(seen *Signed) error {
	if s.Authority != seen.Authority {
		return fault.New(fault.Conflict, "audit checkpoint is of authority %s, and the one seen before of %s",
			s.Authority, seen.Authority)
	}
	if s.Number == seen.Number && bytes.Equal(s.text, seen.text) {
		return nil
	}
	switch {
	case s.Number <= seen.Number:
		return fault.New(fault.Conflict, "audit checkpoint %d is not newer than %d, which was seen: the record was rolled back or forked", s.Number, seen.Number)
	case s.Time.Before(seen.Time):
		return fault.New(fault.Conflict, "audit checkpoint %d is of %s, before the time of %d, which was seen",
			s.Number, s.Time, seen.Number)
	case s.Number == seen.Number+1 && s.Previous != Hash(seen.Raw):
		return fault.New(fault.Conflict, "audit checkpoint %d does not name checkpoint %d as it was seen: the record was forked", s.Number, seen.Number)
	}
	now := make(map[string]Head, len(s.Heads))
	for _, h := range s.Heads {
		now[h.Node] = h
	}
	for _, was := range seen.Heads {
		is, ok := now[was.Node]
		switch {
		case !ok:
			return fault.New(fault.Conflict, "audit checkpoint %d lacks the chain of node %s, which was seen",
				s.Number, was.Node)
		case is.Seq < was.Seq:
			return fault.New(fault.Conflict, "chain of node %s ends at %d, and %d was seen: it was rolled back",
				was.Node, is.Seq, was.Seq)
		case is.Seq == was.Seq && is.Hash != was.Hash:
			return fault.New(fault.Conflict, "event %d of node %s has another hash than was seen: it was rewritten",
				was.Seq, was.Node)
		}
	}
	return nil
}

func keyID(public crypto.PublicKey) (string, error) {
	spki, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return "", fmt.Errorf("encode audit key: %w", err)
	}
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:8]), nil
}

func isKeyID(text string) bool {
	if len(text) != 16 {
		return false
	}
	return strings.Trim(text, "0123456789abcdef") == ""
}

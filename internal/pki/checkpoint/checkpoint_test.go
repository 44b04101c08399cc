package checkpoint

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"chancery/internal/fault"
)

var at = time.Date(2026, 11, 21, 20, 0, 0, 123456000, time.UTC)

func keys(t testing.TB) (crypto.Signer, crypto.Signer) {
	t.Helper()
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return ec, ed
}

func hash(text string) [32]byte { return sha256.Sum256([]byte(text)) }

func first() *Checkpoint {
	return &Checkpoint{Authority: "0197c6a8", Number: 1, Time: at, Heads: []Head{{"node-b", 88, hash("b88")}, {"node-a", 1207, hash("a1207")}}}
}

func sign(t testing.TB, c *Checkpoint, signers ...crypto.Signer) *Signed {
	t.Helper()
	raw, err := c.Sign(signers...)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Parse(raw)
	if err != nil {
		t.Fatalf("%v:\n%s", err, raw)
	}
	return s
}

func TestSignedTextIsReadAndVerified(t *testing.T) {
	ec, ed := keys(t)
	other, _ := keys(t)
	s := sign(t, first(), ec, ed)
	if s.Authority != "0197c6a8" || s.Number != 1 || !s.Time.Equal(at) || len(s.Heads) != 2 || s.Heads[0].Node != "node-a" || s.Heads[1].Hash != hash("b88") {
		t.Fatalf("read back %+v", s)
	}
	for _, key := range []crypto.Signer{ec, ed} {
		if err := s.Verify(other.Public(), key.Public()); err != nil {
			t.Error(err)
		}
	}
	if err := s.Verify(other.Public()); !fault.Is(err, fault.Invalid) {
		t.Errorf("another's key: %v", err)
	}
	if err := s.Verify(); err == nil {
		t.Error("no key verifies it")
	}
	for i := range s.Raw {
		spoilt := bytes.Clone(s.Raw)
		spoilt[i] ^= 0x01
		if p, err := Parse(spoilt); err == nil && p.Verify(ec.Public()) == nil && p.Verify(ed.Public()) == nil {
			t.Fatalf("octet %d can be changed:\n%s", i, spoilt)
		}
	}
}

func TestOneForm(t *testing.T) {
	ec, _ := keys(t)
	raw := string(sign(t, first(), ec).Raw)
	for what, text := range map[string]string{
		"chains out of order": swapLines(raw, 5, 6),
		"lines out of order":  swapLines(raw, 1, 2),
		"number with zero":    strings.Replace(raw, "number 1\n", "number 01\n", 1),
		"upper hexadecimal":   strings.ToUpper(raw[:len(raw)-1]) + "\n",
		"another time zone":   strings.Replace(raw, "123456Z", "123456+00:00", 1),
		"carriage returns":    strings.ReplaceAll(raw, "\n", "\r\n"),
		"no last newline":     strings.TrimSuffix(raw, "\n"),
		"line twice":          strings.Replace(raw, "number 1\n", "number 1\nnumber 1\n", 1),
		"unknown line":        strings.Replace(raw, "number 1\n", "number 1\ncolour red\n", 1),
		"no signature":        raw[:strings.Index(raw, "\n\n")+2],
		"trailing":            raw + "x",
		"five signatures":     raw + strings.Repeat(raw[strings.Index(raw, "\n\n")+2:], 4),
		"empty":               "",
		"too large":           strings.Repeat("x", MaxSize+1),
		"other label":         strings.Replace(raw, "checkpoint 1", "checkpoint 2", 1),
	} {
		if text == raw {
			t.Fatalf("%s: the test changes nothing", what)
		}
		if _, err := Parse([]byte(text)); err == nil {
			t.Errorf("%s: read", what)
		}
	}
}

func swapLines(text string, i, j int) string {
	lines := strings.SplitAfter(text, "\n")
	lines[i], lines[j] = lines[j], lines[i]
	return strings.Join(lines, "")
}

func TestWhatIsNotSigned(t *testing.T) {
	ec, _ := keys(t)
	for what, spoil := range map[string]func(*Checkpoint){
		"node with space":   func(c *Checkpoint) { c.Heads[0].Node = "a b" },
		"node with newline": func(c *Checkpoint) { c.Heads[0].Node = "a\nchain b" },
		"node twice":        func(c *Checkpoint) { c.Heads[0].Node = "node-a" },
		"empty chain":       func(c *Checkpoint) { c.Heads[0].Seq = 0 },
		"no authority":      func(c *Checkpoint) { c.Authority = "" },
		"number 0":          func(c *Checkpoint) { c.Number = 0 },
		"second, unlinked":  func(c *Checkpoint) { c.Number = 2 },
		"first, linked":     func(c *Checkpoint) { c.Previous = hash("x") },
		"no time":           func(c *Checkpoint) { c.Time = time.Time{} },
	} {
		c := first()
		spoil(c)
		if _, err := c.Sign(ec); err == nil {
			t.Errorf("%s: signed", what)
		}
	}
	if _, err := first().Sign(); err == nil {
		t.Error("signed by nobody")
	}
}

func TestSuccessors(t *testing.T) {
	ec, _ := keys(t)
	seen := sign(t, first(), ec)
	next := func(spoil func(*Checkpoint)) *Signed {
		c := first()
		c.Number, c.Time, c.Previous = 2, at.Add(time.Hour), Hash(seen.Raw)
		c.Heads = append(c.Heads, Head{"node-c", 1, hash("c1")})
		c.Heads[1].Seq++
		c.Heads[1].Hash = hash("a1208")
		spoil(c)
		return sign(t, c, ec)
	}
	if err := next(func(*Checkpoint) {}).CheckSuccessor(seen); err != nil {
		t.Error(err)
	}
	if err := seen.CheckSuccessor(seen); err != nil {
		t.Errorf("the same one again: %v", err)
	}
	if err := next(func(c *Checkpoint) { c.Number = 7; c.Previous = hash("six") }).CheckSuccessor(seen); err != nil {
		t.Errorf("one of which those between were not seen: %v", err)
	}
	for what, err := range map[string]error{
		"older":           seen.CheckSuccessor(next(func(*Checkpoint) {})),
		"fork":            next(func(c *Checkpoint) { c.Previous = hash("x") }).CheckSuccessor(seen),
		"other authority": next(func(c *Checkpoint) { c.Authority = "other" }).CheckSuccessor(seen),
		"earlier time":    next(func(c *Checkpoint) { c.Time = at.Add(-time.Second) }).CheckSuccessor(seen),
		"chain lost":      next(func(c *Checkpoint) { c.Heads = c.Heads[1:] }).CheckSuccessor(seen),
		"chain shorter":   next(func(c *Checkpoint) { c.Heads[0].Seq = 80 }).CheckSuccessor(seen),
		"chain rewritten": next(func(c *Checkpoint) { c.Heads[0].Hash = hash("x") }).CheckSuccessor(seen),
		"same number":     sign(t, func() *Checkpoint { c := first(); c.Heads[0].Seq = 99; return c }(), ec).CheckSuccessor(seen),
	} {
		if !fault.Is(err, fault.Conflict) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestRoundTripProperty(t *testing.T) {
	ec, _ := keys(t)
	rapid.Check(t, func(rt *rapid.T) {
		c := &Checkpoint{
			Authority: rapid.StringMatching(`[!-~]{1,40}`).Draw(rt, "authority"),
			Number:    rapid.Int64Range(2, 1<<62).Draw(rt, "number"),
			Time:      time.UnixMicro(rapid.Int64Range(0, 4e15).Draw(rt, "time")),
			Previous:  hash("previous"),
		}
		for _, node := range rapid.SliceOfNDistinct(rapid.StringMatching(`[!-~]{1,20}`), 0, 8, rapid.ID).Draw(rt, "nodes") {
			c.Heads = append(c.Heads, Head{node, rapid.Int64Range(1, 1<<62).Draw(rt, "seq"), hash(node)})
		}
		raw, err := c.Sign(ec)
		if err != nil {
			rt.Fatal(err)
		}
		s, err := Parse(raw)
		if err != nil || s.Verify(ec.Public()) != nil || len(s.Heads) != len(c.Heads) || !s.Time.Equal(c.Time) {
			rt.Fatalf("%v:\n%s", err, raw)
		}
	})
}

// FuzzParse: whatever is read is written again in the same octets, but for its signatures.
func FuzzParse(f *testing.F) {
	if seeds, err := filepath.Glob("testdata/fuzz/FuzzParse/*"); err != nil || len(seeds) < 3 {
		f.Fatalf("the corpus has %d seeds, %v", len(seeds), err)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := Parse(raw)
		if err != nil {
			return
		}
		text, err := s.Checkpoint.text()
		if err != nil || !bytes.HasPrefix(raw, text) {
			t.Fatalf("%v: %q is written as %q", err, raw, text)
		}
	})
}

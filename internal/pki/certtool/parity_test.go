package certtool

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
)

// withFixed puts the serial number and dates before a template that has none of its own.
func withFixed(template string) string {
	head := ""
	if !strings.Contains(template, "serial =") {
		head += fixedSerial
	}
	if !strings.Contains(template, "activation_date =") {
		head += fixedActivation
	}
	if !strings.Contains(template, "expiration_d") {
		head += fixedExpiration
	}
	return head + template
}

// build makes the TBSCertificate of a template with our own code.
func (l *lab) build(t testing.TB, template, key string, mode Mode, o Options) (tbs []byte, warnings []string, err error) {
	t.Helper()
	parsed, list, err := Parse([]byte(template), mode)
	if err != nil {
		return nil, nil, err
	}
	for _, w := range list {
		if w.Line < 1 || w.Column < 1 {
			t.Errorf("warning %q has no place", w)
		}
		warnings = append(warnings, w.Message)
	}
	c, err := parsed.Certificate(time.Now().UTC(), l.keys[key], o)
	if err != nil {
		return nil, warnings, err
	}
	if c.Serial == nil {
		c.Serial = big.NewInt(4711)
	}
	spki, err := x509.MarshalPKIXPublicKey(l.keys[key])
	must(t, err)
	built, err := cert.Build(c.Template, spki, c.Serial, l.issuer)
	if err != nil {
		return nil, warnings, err
	}
	return built.DER(), warnings, nil
}

// asCertificate wraps a TBSCertificate so that takeApart reads it.
func asCertificate(t testing.TB, tbs []byte) *printed {
	t.Helper()
	whole := element(0x30, slices.Concat(tbs, []byte{0x30, 3, 6, 1, 0x2a}, []byte{3, 1, 0}))
	c, err := takeApart(whole)
	must(t, err)
	return c
}

func describe(x []cert.Extension) []string {
	var list []string
	for _, e := range x {
		list = append(list, fmt.Sprintf("%s critical=%v %x", e.ID, e.Critical, e.Value))
	}
	slices.Sort(list)
	return list
}

func compare(t testing.TB, ours, theirs *printed) {
	t.Helper()
	for _, f := range []struct {
		name string
		a, b []byte
	}{
		{"subject", ours.subject, theirs.subject}, {"issuer", ours.issuer, theirs.issuer}, {"serial", ours.serial, theirs.serial},
		{"public key", ours.spki, theirs.spki}, {"issuer unique ID", ours.issuerUID, theirs.issuerUID}, {"subject unique ID", ours.subjectUID, theirs.subjectUID},
	} {
		if !bytes.Equal(f.a, f.b) {
			t.Errorf("%s: ours %x, certtool's %x", f.name, f.a, f.b)
		}
	}
	if ours.version != theirs.version || !ours.notBefore.Equal(theirs.notBefore) || !ours.notAfter.Equal(theirs.notAfter) {
		t.Errorf("ours version %d, %v to %v; certtool's %d, %v to %v", ours.version, ours.notBefore, ours.notAfter, theirs.version, theirs.notBefore, theirs.notAfter)
	}
	if a, b := describe(ours.extensions), describe(theirs.extensions); !slices.Equal(a, b) {
		t.Errorf("extensions:\nours       %s\ncerttool's %s", strings.Join(a, "\n           "), strings.Join(b, "\n           "))
	}
}

// S2 of the libvirt scenarios: each template through certtool and through us, with the same key, serial and dates.
func TestTemplateParity(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	compared, refusals := 0, 0
	used := map[string]bool{}
	for i, c := range parityCases {
		key := c.key
		if key == "" {
			key = "rsa"
		}
		template := withFixed(c.template)
		t.Run(fmt.Sprintf("%03d", i), func(t *testing.T) {
			defer func() {
				if t.Failed() {
					t.Logf("template:\n%s", template)
				}
			}()
			strict, _, strictErr := l.build(t, template, key, Strict, Options{})
			checkStrict(t, c, strictErr)
			theirs, talk := l.generate(t, template, key)
			ours, warnings, err := l.build(t, template, key, Compat, Options{})
			if (theirs == nil) != c.refused || (err != nil) != c.refused {
				t.Fatalf("refused by us: %v; by certtool: %v, %s", err, theirs == nil, talk)
			}
			if err != nil {
				refusals++
				if !fault.Is(err, fault.Invalid) {
					t.Errorf("our refusal is no fault: %v", err)
				}
				return
			}
			compared++
			compare(t, asCertificate(t, ours), mustTakeApart(t, theirs))
			if want := warningsOf(talk); !slices.Equal(warnings, want) {
				t.Errorf("warnings: ours %q, certtool's %q", warnings, want)
			}
			if strictErr == nil && !bytes.Equal(strict, ours) {
				t.Errorf("the modes differ: strict %x, compat %x", strict, ours)
			}
			parsed, _, _ := Parse([]byte(template), Compat)
			for name := range parsed.settings {
				used[name] = true
			}
			l.comparePrint(t, theirs, talk)
		})
	}
	if compared < 150 || refusals < 30 {
		t.Fatalf("only %d templates compared and %d refusals", compared, refusals)
	}
	for _, o := range options {
		if !used[o.name] && !strings.HasPrefix(o.name, "policy") {
			t.Errorf("no template has the option %s", o.name)
		}
	}
}

func mustTakeApart(t testing.TB, der []byte) *printed {
	t.Helper()
	c, err := takeApart(der)
	must(t, err)
	return c
}

func checkStrict(t *testing.T, c parityCase, err error) {
	t.Helper()
	if c.strict == "" {
		if err != nil {
			t.Errorf("the strict mode refuses: %v", err)
		}
		return
	}
	var e *fault.Error
	if !errors.As(err, &e) || e.Kind != fault.Invalid || !strings.Contains(e.Message, c.strict) {
		t.Errorf("the strict mode says %v, want a refusal with %q", err, c.strict)
		return
	}
	var line, column int
	if n, _ := fmt.Sscanf(e.Pointer, "%d:%d", &line, &column); n != 2 || line < 1 || column < 1 {
		t.Errorf("the refusal %q points to %q", e.Message, e.Pointer)
	}
}

// comparePrint holds our printed forms of certtool's certificate against certtool's own, octet by octet.
func (l *lab) comparePrint(t *testing.T, der []byte, talk string) {
	t.Helper()
	var b bytes.Buffer
	b.WriteString(GeneratingSigned)
	must(t, PrintUnsigned(&b, der))
	b.WriteString(Signing)
	if want := withoutWarnings(talk); asCerttool(b.String()) != want {
		t.Errorf("the text of generation differs at:\n%s", firstDifference(asCerttool(b.String()), want))
	}
	l.comparePrintedCertificate(t, der)
}

func (l *lab) comparePrintedCertificate(t *testing.T, der []byte) {
	t.Helper()
	l.write(t, "info.der", string(der))
	want, talk, ok := l.run(t, "--certificate-info", "--inder", "--infile", "info.der")
	if !ok {
		t.Fatalf("certtool cannot print: %s", talk)
	}
	var b bytes.Buffer
	must(t, Print(&b, der))
	if asCerttool(b.String()) != want {
		t.Errorf("the printed certificate differs at:\n%s", firstDifference(asCerttool(b.String()), want))
	}
}

// withoutWarnings leaves out what certtool says about the template and the validity.
func withoutWarnings(talk string) string {
	_, text, _ := strings.Cut(talk, GeneratingSigned)
	if i := strings.Index(text, "X.509 Certificate Information:"); i > 0 {
		text = text[i:]
	}
	return GeneratingSigned + text
}

func firstDifference(ours, theirs string) string {
	a, b := strings.Split(ours, "\n"), strings.Split(theirs, "\n")
	for i := range max(len(a), len(b)) {
		if i >= len(a) || i >= len(b) || a[i] != b[i] {
			return fmt.Sprintf("ours       %q\ncerttool's %q", a[min(i, len(a)):min(i+3, len(a))], b[min(i, len(b)):min(i+3, len(b))])
		}
	}
	return "nowhere"
}

func TestDivergences(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	if len(ourRefusals) < 15 {
		t.Fatalf("only %d divergences are listed", len(ourRefusals))
	}
	for template, want := range ourRefusals {
		template = withFixed(template)
		if der, talk := l.generate(t, template, "rsa"); der == nil {
			t.Errorf("certtool refuses it too:\n%s%s", template, talk)
		}
		for _, mode := range []Mode{Strict, Compat} {
			if _, _, err := l.build(t, template, "rsa", mode, Options{}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), want) {
				t.Errorf("mode %d: got %v, want a refusal with %q of\n%s", mode, err, want, template)
			}
		}
	}
}

// The refusals point at the character that is to blame.
func TestRefusalsPointAtTheTrap(t *testing.T) {
	for template, want := range map[string]string{
		"cn = host1 # x\n":                               "1:12",
		"unit = ü\nca = false\n":                         "2:6",
		"unit = u\n  ; c\n":                              "2:3",
		"CN = x\n":                                       "1:1",
		"cn = üx\r\n":                                    "1:8",
		"cn = x \n":                                      "1:7",
		"cn = \"a\n":                                     "1:6",
		"cn = a\\b\n":                                    "1:7",
		"cn = \"a\" b\n":                                 "1:10",
		"cn = a\ncn = b\n":                               "2:1",
		"cn = a\nexpiration_days = soon\n":               "2:19",
		"cn = a\n\n  path_len = 1\n":                     "3:3",
		"cn = a\nip_address = 1.2.3\n":                   "2:14",
		"\nserial = 0x7ab\n":                             "2:10",
		"activation_date = \"Feb 29 2025\"\n":            "1:19",
		"cn = a\nsubject_unique_id = 00\n":               "2:1",
		"cn = a\n issuer_unique_id = 00\n":               "2:2",
		"cn = a\nadd_extension = 2.5.29.19 30030101ff\n": "2:1",
		"cn = a\nadd_critical_extension = 2.5.29.15 03020640\nsigning_key\n": "2:1",
		"cn = a\n\n add_extension = 2.5.29.35 3000\n":                        "3:2",
		"cn = a\nadd_extension = 2.5.29.14 0400\n":                           "2:1",
		"cn = a\nunit = \"\\\n\\\nx\"\nfoo = 1\n":                            "5:1",
	} {
		parsed, _, err := Parse([]byte(template), Strict)
		if err == nil {
			_, err = parsed.Certificate(time.Now(), nil, Options{})
		}
		var e *fault.Error
		if !errors.As(err, &e) || e.Pointer != want || !strings.Contains(e.Message, "line "+want[:1]+", column "+want[2:]) {
			t.Errorf("%q: got %v, want a refusal at %s", template, err, want)
		}
	}
}

package path_test

import (
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/internal/pki/cert"
	"chancery/internal/pki/path"
)

// pkitsVector is a test of NIST's Public Key Interoperability Test Suite as the Go distribution carries it.
type pkitsVector struct {
	Name                        string
	CertPath                    []string // root first
	ShouldValidate              bool
	InitialPolicySet            []string
	InitialPolicyMappingInhibit bool
	InitialExplicitPolicy       bool
	InitialAnyPolicyInhibit     bool
}

// pkitsPolicies are the names that the vectors use for policies.
var pkitsPolicies = map[string]asn1.ObjectIdentifier{
	"anyPolicy":          cert.OIDAnyPolicy,
	"NIST-test-policy-1": {2, 16, 840, 1, 101, 3, 2, 1, 48, 1},
	"NIST-test-policy-2": {2, 16, 840, 1, 101, 3, 2, 1, 48, 2},
	"NIST-test-policy-3": {2, 16, 840, 1, 101, 3, 2, 1, 48, 3},
	"NIST-test-policy-6": {2, 16, 840, 1, 101, 3, 2, 1, 48, 6},
}

// pkitsOutOfScope says why a vector is not a test of the path check.
func pkitsOutOfScope(name string) string {
	number, _, _ := strings.Cut(name, " ")
	section := number[:strings.LastIndex(number, ".")]
	switch {
	case section == "4.4", section == "4.14", section == "4.15":
		return "revocation is judged apart from the path"
	case number == "4.1.4", number == "4.1.5", number == "4.1.6":
		return "DSA is refused as a key"
	case slices.Contains([]string{"4.5.2", "4.5.3", "4.5.4", "4.5.6", "4.5.7"}, number):
		return "its certificates sign CRLs or are revoked by one, which is judged apart"
	case slices.Contains([]string{"4.7.4", "4.7.5"}, number):
		return "the fault is a missing cRLSign, which matters when a CRL is judged"
	}
	return ""
}

// TestPKITS runs the path vectors of NIST's suite.
func TestPKITS(t *testing.T) {
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(strings.TrimSpace(string(root)), "src/crypto/x509/testdata/nist-pkits")
	text, err := os.ReadFile(filepath.Join(dir, "vectors.json"))
	if err != nil {
		t.Fatalf("the Go distribution carries the vectors, this one does not: %v", err)
	}
	var vectors []pkitsVector
	if err := json.Unmarshal(text, &vectors); err != nil {
		t.Fatal(err)
	}
	ran, skipped := 0, 0
	for _, v := range vectors {
		if pkitsOutOfScope(v.Name) != "" {
			skipped++
			continue
		}
		ran++
		t.Run(v.Name, func(t *testing.T) { v.run(t, dir) })
	}
	t.Logf("%d vectors ran, %d are of other scope", ran, skipped)
	if ran < 160 {
		t.Errorf("only %d of %d vectors ran", ran, len(vectors))
	}
}

func (v *pkitsVector) run(t *testing.T, dir string) {
	var chain []*x509.Certificate
	var err error
	for _, file := range slices.Backward(v.CertPath) {
		der, readErr := os.ReadFile(filepath.Join(dir, "certs", file))
		if readErr != nil {
			t.Fatal(readErr)
		}
		c, parseErr := x509.ParseCertificate(der)
		if parseErr != nil {
			err = parseErr // a certificate that cannot be read is refused
			break
		}
		chain = append(chain, c)
	}
	if err == nil {
		o := path.Options{
			Time: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC), ExplicitPolicy: v.InitialExplicitPolicy,
			InhibitPolicyMapping: v.InitialPolicyMappingInhibit, InhibitAnyPolicy: v.InitialAnyPolicyInhibit,
		}
		for _, name := range v.InitialPolicySet {
			policy, ok := pkitsPolicies[name]
			if !ok {
				t.Fatalf("unknown policy %q", name)
			}
			if name != "anyPolicy" {
				o.InitialPolicies = append(o.InitialPolicies, policy)
			}
		}
		_, err = path.Verify(chain, o)
	}
	if (err == nil) != v.ShouldValidate {
		t.Errorf("valid: want %t, error %v", v.ShouldValidate, err)
	}
}

// TestBetterTLS runs Netflix's path building and name constraint suites, which are made anew from their module.
func TestBetterTLS(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Log("the vectors take a program of their own to make; the short run leaves them out")
		return
	}
	file := filepath.Join(t.TempDir(), "vectors.json")
	c := exec.Command("go", "tool", "bettertls", "export-tests", "--out", file)
	c.Dir = filepath.Join("..", "..", "..", "tools")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("bettertls: %v: %s", err, out)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var vectors struct {
		Root   string `json:"trustRoot"`
		Suites map[string]struct {
			TestCases []betterTLSCase `json:"testCases"`
		} `json:"suites"`
	}
	if err := json.Unmarshal(text, &vectors); err != nil {
		t.Fatal(err)
	}
	anchor := parse64(t, vectors.Root)
	for name, least := range map[string]int{"pathbuilding": 60, "nameconstraints": 5000} {
		cases := vectors.Suites[name].TestCases
		stricter := 0
		for _, c := range cases {
			err := c.judge(anchor)
			switch {
			case (err == nil) == (c.Expected == "ACCEPT"):
			case err != nil && c.FailureIsWarning:
				// As OpenSSL does, we hold a common name that reads as a host name against DNS constraints, where the
				// certificate has no DNS name.
				stricter++
			default:
				t.Errorf("%s %d: want %s, error %v", name, c.ID, c.Expected, err)
			}
		}
		t.Logf("%s: %d cases; refused, though the suite would only warn: %d", name, len(cases), stricter)
		if stricter > 40 {
			t.Errorf("%s: %d refusals that the suite calls warnings; 40 are known", name, stricter)
		}
		if len(cases) < least {
			t.Errorf("%s: only %d cases", name, len(cases))
		}
	}
}

type betterTLSCase struct {
	ID           uint32   `json:"id"`
	Certificates []string `json:"certificates"`
	Hostname     string   `json:"hostname"`
	Expected     string   `json:"expected"`
	// FailureIsWarning marks cases that a strict verifier may refuse.
	FailureIsWarning bool `json:"failureIsWarning"`
}

func (c *betterTLSCase) judge(anchor *x509.Certificate) error {
	var chain []*x509.Certificate
	for _, text := range c.Certificates {
		der, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return err
		}
		certificate, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		chain = append(chain, certificate)
	}
	if _, err := path.Build(chain[0], chain[1:], []*x509.Certificate{anchor}, path.Options{
		Time: time.Now(), ExtKeyUsages: []asn1.ObjectIdentifier{cert.OIDServerAuth},
	}); err != nil {
		return err
	}
	host := c.Hostname
	if net.ParseIP(host) != nil {
		host = "[" + host + "]"
	}
	return chain[0].VerifyHostname(host)
}

func parse64(t *testing.T, text string) *x509.Certificate {
	t.Helper()
	der, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

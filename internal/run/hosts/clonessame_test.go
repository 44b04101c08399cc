package hosts_test

import (
	"bytes"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/client"
)

// responseData is the ResponseData of an answer (RFC 6960 section 4.2.1) but for producedAt, and the certificates that go with it: what is
// alike whichever node answers. The signature is not, since it is of ECDSA.
func responseData(t *testing.T, der []byte) string {
	t.Helper()
	var response struct {
		Status asn1.Enumerated
		Bytes  struct {
			Type  asn1.ObjectIdentifier
			Octet []byte
		} `asn1:"explicit,tag:0"`
	}
	rest, err := asn1.Unmarshal(der, &response)
	must(t, err)
	var basic struct {
		Data struct {
			Responder  asn1.RawValue
			ProducedAt time.Time `asn1:"generalized"`
			Singles    asn1.RawValue
			Extensions asn1.RawValue `asn1:"optional"`
		}
		Algorithm    asn1.RawValue
		Signature    asn1.BitString
		Certificates asn1.RawValue `asn1:"optional"`
	}
	more, err := asn1.Unmarshal(response.Bytes.Octet, &basic)
	must(t, err)
	if len(rest)+len(more) > 0 || len(basic.Data.Responder.FullBytes) == 0 || len(basic.Data.Singles.FullBytes) == 0 || len(basic.Certificates.FullBytes) == 0 {
		t.Fatalf("an answer without a responder, its certificate or a status: %x", der)
	}
	return fmt.Sprintf("responderID %x\nresponses %x\nextensions %x\nalgorithm %x\ncerts %x", basic.Data.Responder.FullBytes, basic.Data.Singles.FullBytes,
		basic.Data.Extensions.FullBytes, basic.Algorithm.FullBytes, basic.Certificates.FullBytes)
}

// answers posts a request to a node. It is nil while the node has no answer, or says that its data are old.
func (n *nodes) answers(t *testing.T, at string, request []byte) []byte {
	t.Helper()
	answer, err := http.Post("http://"+n.all[at].public+"/ocsp", "application/ocsp-request", bytes.NewReader(request))
	must(t, err)
	defer answer.Body.Close()
	der, err := io.ReadAll(answer.Body)
	must(t, err)
	var status struct{ Status asn1.Enumerated }
	if _, err := asn1.Unmarshal(der, &status); err != nil || status.Status != 0 || answer.Header.Get("Chancery-Data-Age") != "" {
		return nil
	}
	return der
}

// alike has openssl ask about a certificate, alone and together with a serial number that nobody issued; has it check what each node answers; and
// wants the answers to be of the same octets. Where a period of answers began meanwhile, so that the first node itself says something else than
// before, all are asked again.
func (n *nodes) alike(t *testing.T, c *client.Certificate, want string) {
	t.Helper()
	leaf, above, path := n.shown(t, "node1", c)
	work := t.TempDir()
	request, answer := filepath.Join(work, "request"), filepath.Join(work, "answer")
	asked := slices.Sorted(maps.Keys(n.all))
	for _, about := range [][]string{{"-cert", leaf}, {"-cert", leaf, "-serial", "0x424242"}} {
		about = append([]string{"ocsp", "-no_nonce", "-issuer", above}, about...)
		output(t, exec.Command("openssl", append(about, "-reqout", request)...))
		question := read(t, request)
		until(t, "all nodes answer within one period", func() bool {
			said := map[string]string{}
			for _, at := range asked {
				der := n.answers(t, at, question)
				if der == nil {
					return false
				}
				must(t, os.WriteFile(answer, der, 0o644))
				shown := output(t, exec.Command("openssl", append(about, "-respin", answer, "-CAfile", path)...))
				if !strings.Contains(shown, leaf+": "+want+"\n") || len(about) > 6 && !strings.Contains(shown, "0x424242: unknown\n") {
					t.Fatalf("%s, which says %s when it is asked alone, now says\n%s", at, want, shown)
				}
				said[at] = responseData(t, der)
			}
			again := n.answers(t, asked[0], question)
			if again == nil || responseData(t, again) != said[asked[0]] {
				return false
			}
			for _, at := range asked[1:] {
				if said[at] != said[asked[0]] {
					t.Fatalf("%s says\n%s\nand %s\n%s", asked[0], said[asked[0]], at, said[at])
				}
			}
			return len(said) > 1
		})
	}
}

// sameIssuers wants each node to show the same issuers: certificates, the identifiers of their keys, and which keys there are. What a node
// issues is under the key that every node shows.
func (n *nodes) sameIssuers(t *testing.T) {
	t.Helper()
	work := t.TempDir()
	issuers := func(at string) (shown []string) {
		all, err := client.Collect(n.all[at].admin.Issuers(t.Context()))
		must(t, err)
		for _, i := range all {
			shown = append(shown, fmt.Sprint(i.Name, " ", i.State, " ", i.KeyOnline, " ", i.PEM))
		}
		slices.Sort(shown)
		return shown
	}
	want := issuers("node1")
	if len(want) < 2 {
		t.Errorf("there are the issuers %q", want)
	}
	ids := map[string]string{}
	for at := range n.all {
		until(t, at+" has the same issuers", func() bool { return slices.Equal(issuers(at), want) })
		file := filepath.Join(work, at)
		must(t, os.WriteFile(file, []byte(n.types(t, at, "issuer", "show", "default", "--pem")), 0o644))
		ids[n.types(t, at, "key", "id", file, "-o", "json")] = at
	}
	if len(ids) != 1 {
		t.Fatalf("the key of the default issuer has the identifiers %v", ids)
	}
	of := func(name string) string {
		return n.sql(t, `SELECT string_agg(w.key_id, ' ' ORDER BY w.key_id) FROM key_wrap w JOIN sealed_key k ON k.id = w.key_id
			WHERE w.recipient_id = '`+name+`' AND k.purpose = 'issuer'`)
	}
	if one, two := of("node1"), of("node2"); one != two || one == "" {
		t.Errorf("node1 has the issuers' keys %s, and node2 %s", one, two)
	}
	made := parsed(t, []byte(n.issue(t, "node2").PEM))
	for id := range ids {
		if rfc := decode[struct{ RFC5280 string }](t, id).RFC5280; rfc == "" || hex.EncodeToString(made.AuthorityKeyId) != rfc {
			t.Errorf("what node2 issues is under the key %x, and not %s", made.AuthorityKeyId, rfc)
		}
	}
	must(t, made.CheckSignatureFrom(parsed(t, read(t, filepath.Join(work, "node1")))))
}

// asClone wants a node that does not sign CRLs to say so by the switches of RHCS.
func (n *nodes) asClone(t *testing.T, at string) {
	t.Helper()
	until(t, at+" has the role of a clone", func() bool {
		c, err := n.all[at].admin.Clone(t.Context(), at)
		must(t, err)
		updates := 0
		for _, s := range c.Switches {
			if strings.HasSuffix(s.Name, ".enableCRLUpdates") {
				if updates++; s.Value != "false" {
					return false
				}
			}
		}
		return updates > 0
	})
}

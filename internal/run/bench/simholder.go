package bench

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	mathrand "math/rand/v2"
	"net/http"
	"strconv"
	"time"

	"chancery/client"
	"chancery/internal/pki/cert"
)

// holder is a simulated agent without a disk: it waits for changes, asks for the certificates that it shall have, and
// reports. Thousands fit into one process, and to the authority each is a host like any other.
type holder struct {
	poller
	name   string
	wants  wants
	serial string
	held   int64  // the number under which its certificate was asked for
	issuer string // whose certificate it has
	signer string // the fingerprint of that issuer's certificate
	ends   time.Time
}

// wants is what a holder reads of a desired state.
type wants struct {
	ETag       string   `json:"etag"`
	Pool       string   `json:"pool"`
	DNS        []string `json:"dns"`
	Placements []struct {
		Name    string `json:"name"`
		Issuer  string `json:"issuer"`
		Reissue int64  `json:"reissue"`
	} `json:"placements"`
	Trust struct {
		Version int64                `json:"version"`
		Issuers []client.TrustIssuer `json:"issuers"`
	} `json:"trust"`
}

// hold is the life of a holder.
func (c *crew) hold(ctx context.Context, i int, turn chan struct{}, h *holder) error {
	h.told = &h.wants
	ended := context.AfterFunc(ctx, h.interrupt)
	defer ended()
	defer h.close()
	for begun := false; ctx.Err() == nil; {
		err := h.reach(turn)
		if err == nil {
			err = h.converge(turn)
		}
		if err == nil && !begun {
			c.waiting.Add(1)
			begun = true
		}
		changed := false
		if err == nil {
			changed, err = h.poll(c.order.Wait)
		}
		if err != nil {
			h.drop()
			if ctx.Err() == nil {
				c.fail(fmt.Errorf("%s: %w", h.name, err))
				_ = pause(ctx, time.Second+mathrand.N(time.Second))
			}
			continue
		}
		if changed {
			c.heard[i].Store(time.Now().UnixNano())
		}
		c.polls.Add(1)
	}
	return nil
}

// converge gets a certificate where one is wanted, and reports what it holds, as often as something is new.
func (h *holder) converge(turn chan struct{}) error {
	if len(h.wants.Placements) != 1 || h.wants.ETag == "" {
		return nil
	}
	p := h.wants.Placements[0]
	if h.serial == "" || p.Reissue > h.held || p.Issuer != "" && p.Issuer != h.issuer {
		turn <- struct{}{} // the processor of all holders is one
		err := h.obtain(p.Issuer)
		<-turn
		if err != nil {
			return err
		}
		h.held = p.Reissue
	}
	crls := map[string]string{}
	for _, i := range h.wants.Trust.Issuers {
		crls[i.Name] = i.CRLNumber
	}
	text, err := json.Marshal(client.Report{Agent: "bench", Generation: 1, ETag: h.wants.ETag, Observations: []client.Observation{{
		Placement: p.Name, State: client.PlacementPlaced, Serial: h.serial, NotAfter: h.ends, Trust: h.wants.Trust.Version, Issuer: h.signer,
		Reissued: h.held, CRLs: crls, At: time.Now(),
	}}})
	if err != nil {
		return err
	}
	_, err = h.post("/agent/report", text, http.StatusNoContent)
	return err
}

// obtain asks for a certificate with a new key.
func (h *holder) obtain(issuer string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &cert.CSRTemplate{}
	for _, name := range h.wants.DNS {
		general, err := cert.ParseGeneralName("dns:" + name)
		if err != nil {
			return err
		}
		template.SAN = append(template.SAN, general)
	}
	csr, err := cert.CreateCSR(template, key)
	if err != nil {
		return err
	}
	text, err := json.Marshal(client.IssueRequest{
		Pool: h.wants.Pool, Issuer: issuer, Profile: "server", CSR: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})),
	})
	if err != nil {
		return err
	}
	body, err := h.post("/certificates", text, http.StatusCreated)
	if err != nil {
		return err
	}
	var answer client.IssueResult
	if err := json.Unmarshal(body, &answer); err != nil {
		return err
	}
	if answer.Certificate == nil {
		return fmt.Errorf("no certificate: %.200s", body)
	}
	h.serial, h.issuer, h.ends = answer.Certificate.Serial, answer.Certificate.Issuer, answer.Certificate.NotAfter
	return h.findSigner()
}

// findSigner takes the fingerprint of the issuer from the trust set.
func (h *holder) findSigner() error {
	for _, i := range h.wants.Trust.Issuers {
		if block, _ := pem.Decode([]byte(i.PEM)); i.Name == h.issuer && block != nil {
			if _, err := x509.ParseCertificate(block.Bytes); err != nil {
				return err
			}
			sum := sha256.Sum256(block.Bytes)
			h.signer = hex.EncodeToString(sum[:])
			return nil
		}
	}
	return fmt.Errorf("issuer %s is not in the trust set", h.issuer)
}

// post makes a call on the holder's connection.
func (h *holder) post(path string, body []byte, wanted int) ([]byte, error) {
	head := post(h.address, client.Prefix+path, "application/json", len(body)) + "Accept: application/json\r\nIdempotency-Key: " + rand.Text() + "\r\n\r\n"
	h.buf = append(append(h.buf[:0], head...), body...)
	if err := h.conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return nil, err
	}
	if _, err := h.conn.Write(h.buf); err != nil {
		return nil, err
	}
	status, err := h.answer()
	answered := h.body
	h.buf, h.body = nil, nil // thousands wait, and should hold nothing meanwhile
	if err == nil && status != wanted {
		err = fmt.Errorf("%s: status %s, not %d: %.300s", path, strconv.Itoa(status), wanted, answered)
	}
	return answered, err
}

package publish

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"net/http"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"chancery/internal/fault"
)

const (
	certificateType = "application/pkix-cert"                         // RFC 2585 §4.1
	certsOnlyType   = "application/pkcs7-mime; smime-type=certs-only" // RFC 8551 §3.2.2, as RFC 5280 §4.2.2.1 asks

	certificateMaxAge = 24 * time.Hour
)

// certificate serves an issuer's certificate. It changes where the issuer is renewed with its key; .p7c has the one before beside it
// until that ends (RFC 5280 4.2.2.1). An issuer whose answer from an outside root comes later has none before.
func (h *Handler) certificate(w http.ResponseWriter, r *http.Request) error {
	name, form, err := cut(r.PathValue("file"))
	if err != nil {
		return err
	}
	issuer, err := h.ca.Issuer(r.Context(), name)
	if err != nil {
		return err
	}
	if issuer.Certificate == nil {
		return fault.New(fault.NotFound, "issuer %s waits for its certificate", issuer.Name)
	}
	var (
		body      []byte
		mediaType string
	)
	switch form {
	case "cer":
		body, mediaType = issuer.Certificate.Raw, certificateType
	case "pem":
		body, mediaType = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: issuer.Certificate.Raw}), pemType
	case "p7c":
		mediaType = certsOnlyType
		// Whoever follows a link to here may have to find the certificate that the issuer had: some leaves name it by its serial, and
		// signatures of the past are verified at a time before the new one began.
		path := append([]*x509.Certificate{issuer.Certificate}, issuer.Standing(time.Now())...)
		if body, err = certsOnly(append(path, issuer.Chain...)); err != nil {
			return err
		}
	default:
		return fault.New(fault.NotFound, "a certificate is to be had as .cer (DER), .pem and .p7c, not as .%.20s", form)
	}
	sum := sha256.Sum256(body)
	d := document{mediaType: mediaType, tag: hex.EncodeToString(sum[:16]), modified: issuer.Certificate.NotBefore,
		maxAge: certificateMaxAge, size: int64(len(body))}
	if d.send(w, r) {
		w.Write(body) // an error here is a reader that has gone
	}
	return nil
}

// certsOnly is a CMS SignedData that signs nothing and carries certificates (RFC 5652 §5.2, "degenerate").
func certsOnly(certificates []*x509.Certificate) ([]byte, error) {
	var set [][]byte
	for _, c := range certificates {
		set = append(set, c.Raw)
	}
	slices.SortFunc(set, bytes.Compare) // DER orders a SET OF
	set = slices.CompactFunc(set, bytes.Equal)
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2})
		b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1Int64(1)
				b.AddASN1(cbasn1.SET, func(*cryptobyte.Builder) {})
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1})
				})
				b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
					for _, der := range set {
						b.AddBytes(der)
					}
				})
				b.AddASN1(cbasn1.SET, func(*cryptobyte.Builder) {})
			})
		})
	})
	der, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encode certificates: %w", err)
	}
	return der, nil
}

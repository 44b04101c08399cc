package ocsp

import (
	"crypto"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
)

// SingleResponse is what is said of one certificate.
type SingleResponse struct {
	CertID        []byte // CertID.Raw of the request
	Status        CertStatus
	RevokedAt     time.Time
	Reason        crl.Reason
	ThisUpdate    time.Time // when the status was read (RFC 6960 §2.4), not when it was signed
	NextUpdate    time.Time // zero leaves it out: newer information is then always to be had
	ArchiveCutoff time.Time // zero leaves it out (RFC 6960 §4.4.4)
}

// Responder signs responses with one key.
type Responder struct {
	Certificate *x509.Certificate

	signer       crypto.Signer
	algorithm    cert.SignatureAlgorithm
	identifier   []byte // AlgorithmIdentifier
	responderID  []byte
	certificates []byte // content of certs; empty when the issuer itself signs
}

// ResponderID says how a response names its signer.
type ResponderID uint8

// The choices of RFC 6960 §4.2.1. RFC 5019 §2.2.1 wants ByKey from a responder of many answers: it is shorter.
const (
	ByKey ResponderID = iota
	ByName
)

// NewResponder returns a responder that speaks for issuer: issuer itself, or a certificate that issuer signed with the
// extended key usage id-kp-OCSPSigning (RFC 6960 §4.2.2.2), which then goes with every answer.
func NewResponder(issuer, certificate *x509.Certificate, signer crypto.Signer, id ResponderID) (*Responder, error) {
	key, ok := certificate.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !key.Equal(signer.Public()) {
		return nil, fault.New(fault.Invalid, "the key is not the one of responder %q", certificate.Subject)
	}
	algorithm, err := cert.DefaultAlgorithm(signer.Public())
	if err != nil {
		return nil, err
	}
	r := &Responder{Certificate: certificate, signer: signer, algorithm: algorithm, identifier: algorithm.Identifier()}
	if !certificate.Equal(issuer) {
		if err := checkDelegated(issuer, certificate); err != nil {
			return nil, err
		}
		r.certificates = certificate.Raw
	}
	r.responderID, err = responderID(certificate, id)
	return r, err
}

func checkDelegated(issuer, certificate *x509.Certificate) error {
	if err := certificate.CheckSignatureFrom(issuer); err != nil {
		return fault.New(fault.Invalid, "responder %q is not signed by issuer %q itself: %w", certificate.Subject,
			issuer.Subject, err)
	}
	if !slices.Contains(certificate.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning) {
		return fault.New(fault.Invalid, "responder %q has no extended key usage OCSPSigning (RFC 6960 §4.2.2.2)",
			certificate.Subject)
	}
	if certificate.KeyUsage != 0 && certificate.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return fault.New(fault.Invalid, "responder %q has a keyUsage without digitalSignature", certificate.Subject)
	}
	return nil
}

func responderID(certificate *x509.Certificate, id ResponderID) ([]byte, error) {
	var b cryptobyte.Builder
	if id == ByName {
		b.AddASN1(context(1), func(b *cryptobyte.Builder) { b.AddBytes(certificate.RawSubject) })
		return b.Bytes()
	}
	bits, err := publicKeyBits(certificate)
	if err != nil {
		return nil, err
	}
	b.AddASN1(context(2), func(b *cryptobyte.Builder) { b.AddASN1OctetString(sum(crypto.SHA1, bits)) })
	return b.Bytes()
}

// Respond signs a response over singles, in their order, with nonce echoed where it is not empty.
func (r *Responder) Respond(singles []SingleResponse, nonce []byte, producedAt time.Time) ([]byte, error) {
	b := cryptobyte.NewBuilder(make([]byte, 0, 128+192*len(singles)))
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(r.responderID)
		b.AddASN1GeneralizedTime(producedAt.UTC())
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			for i := range singles {
				singles[i].add(b)
			}
		})
		if len(nonce) > 0 {
			b.AddASN1(context(1), func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddASN1ObjectIdentifier(oidNonce)
						b.AddASN1(cbasn1.OCTET_STRING, func(b *cryptobyte.Builder) { b.AddASN1OctetString(nonce) })
					})
				})
			})
		}
	})
	data, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encode OCSP response: %w", err)
	}
	signature, err := r.algorithm.Sign(r.signer, data)
	if err != nil {
		return nil, fmt.Errorf("sign OCSP response: %w", err)
	}
	return r.envelope(data, signature)
}

func (r *Responder) envelope(data, signature []byte) ([]byte, error) {
	b := cryptobyte.NewBuilder(make([]byte, 0, len(data)+len(signature)+len(r.certificates)+96))
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.ENUM, func(b *cryptobyte.Builder) { b.AddUint8(uint8(Successful)) })
		b.AddASN1(context(0), func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(oidBasic)
				b.AddASN1(cbasn1.OCTET_STRING, func(b *cryptobyte.Builder) {
					b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddBytes(data)
						b.AddBytes(r.identifier)
						b.AddASN1BitString(signature)
						if len(r.certificates) > 0 {
							b.AddASN1(context(0), func(b *cryptobyte.Builder) {
								b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(r.certificates) })
							})
						}
					})
				})
			})
		})
	})
	der, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encode OCSP response: %w", err)
	}
	return der, nil
}

func (s *SingleResponse) add(b *cryptobyte.Builder) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(s.CertID)
		switch s.Status {
		case Good:
			b.AddASN1(cbasn1.Tag(0).ContextSpecific(), func(*cryptobyte.Builder) {})
		case Revoked:
			b.AddASN1(context(1), func(b *cryptobyte.Builder) {
				b.AddASN1GeneralizedTime(s.RevokedAt.UTC())
				if s.Reason != crl.Unspecified {
					b.AddASN1(context(0), func(b *cryptobyte.Builder) {
						b.AddASN1(cbasn1.ENUM, func(b *cryptobyte.Builder) { b.AddUint8(uint8(s.Reason)) })
					})
				}
			})
		default:
			b.AddASN1(cbasn1.Tag(2).ContextSpecific(), func(*cryptobyte.Builder) {})
		}
		b.AddASN1GeneralizedTime(s.ThisUpdate.UTC())
		if !s.NextUpdate.IsZero() {
			b.AddASN1(context(0), func(b *cryptobyte.Builder) { b.AddASN1GeneralizedTime(s.NextUpdate.UTC()) })
		}
		if !s.ArchiveCutoff.IsZero() {
			b.AddASN1(context(1), func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddASN1ObjectIdentifier(oidArchiveCutoff)
						b.AddASN1(cbasn1.OCTET_STRING,
							func(b *cryptobyte.Builder) { b.AddASN1GeneralizedTime(s.ArchiveCutoff.UTC()) })
					})
				})
			})
		}
	})
}

// ErrorResponse is the unsigned response of a status other than Successful.
func ErrorResponse(status ResponseStatus) []byte {
	return []byte{0x30, 0x03, 0x0a, 0x01, byte(status)}
}

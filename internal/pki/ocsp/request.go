package ocsp

import (
	"encoding/asn1"
	"encoding/base64"
	"math/big"
	"net/url"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"chancery/internal/fault"
)

// Request is what was asked.
type Request struct {
	CertIDs []CertID
	Nonce   []byte // empty when there was none
	Signed  bool   // a signature was there, and was not checked
}

func malformed(format string, args ...any) error {
	return fault.New(fault.Invalid, "OCSP request: "+format, args...)
}

// ParseRequest reads a DER OCSPRequest. Every error is a refusal that is answered with malformedRequest.
func ParseRequest(der []byte) (*Request, error) {
	if len(der) > MaxRequest {
		return nil, malformed("%d octets are over the limit of %d", len(der), MaxRequest)
	}
	var (
		input               = cryptobyte.String(der)
		outer, tbs, ignored cryptobyte.String
		r                   = &Request{}
	)
	if !input.ReadASN1(&outer, cbasn1.SEQUENCE) || !input.Empty() || !outer.ReadASN1(&tbs, cbasn1.SEQUENCE) {
		return nil, malformed("is not one DER SEQUENCE that begins with a tbsRequest")
	}
	if !outer.ReadOptionalASN1(&ignored, &r.Signed, context(0)) || !outer.Empty() {
		return nil, malformed("something follows the tbsRequest that is no signature")
	}
	if err := r.parseTBS(tbs); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *Request) parseTBS(tbs cryptobyte.String) error {
	var (
		version, name, list, explicit cryptobyte.String
		present                       bool
	)
	if !tbs.ReadOptionalASN1(&version, &present, context(0)) {
		return malformed("version is not DER")
	}
	if present { // v1 is the default; some clients write it all the same
		var v int64
		if !version.ReadASN1Integer(&v) || v != 0 || !version.Empty() {
			return malformed("version is not 1")
		}
	}
	if !tbs.ReadOptionalASN1(&name, &present, context(1)) || !tbs.ReadASN1(&list, cbasn1.SEQUENCE) {
		return malformed("requestList is missing")
	}
	for !list.Empty() {
		if len(r.CertIDs) == MaxCertIDs {
			return malformed("asks for more than %d certificates", MaxCertIDs)
		}
		id, err := readSingle(&list)
		if err != nil {
			return err
		}
		r.CertIDs = append(r.CertIDs, id)
	}
	if len(r.CertIDs) == 0 {
		return malformed("requestList is empty")
	}
	if !tbs.ReadOptionalASN1(&explicit, &present, context(2)) || !tbs.Empty() {
		return malformed("something follows the requestList that is no requestExtensions")
	}
	if present {
		return r.parseExtensions(explicit)
	}
	return nil
}

func readSingle(list *cryptobyte.String) (CertID, error) {
	var (
		single, element, explicit cryptobyte.String
		present                   bool
	)
	if !list.ReadASN1(&single, cbasn1.SEQUENCE) || !single.ReadASN1Element(&element, cbasn1.SEQUENCE) {
		return CertID{}, malformed("an element of requestList has no reqCert")
	}
	id, err := readCertID(element)
	if err != nil {
		return id, err
	}
	if !single.ReadOptionalASN1(&explicit, &present, context(0)) || !single.Empty() {
		return id, malformed("something follows a reqCert that is no singleRequestExtensions")
	}
	if !present {
		return id, nil
	}
	return id, eachExtension(explicit, func(oid asn1.ObjectIdentifier, critical bool, _ cryptobyte.String) error {
		if critical && !oid.Equal(oidServiceLocator) {
			return malformed("extension %v of a reqCert is critical and not known", oid)
		}
		return nil
	})
}

func readCertID(element cryptobyte.String) (CertID, error) {
	var (
		id                   = CertID{Raw: element, Serial: new(big.Int)}
		body, algorithm      cryptobyte.String
		nameHash, keyHash    cryptobyte.String
		hash                 asn1.ObjectIdentifier
		null                 cryptobyte.String
		withParameters, isOK bool
	)
	isOK = element.ReadASN1(&body, cbasn1.SEQUENCE) &&
		body.ReadASN1(&algorithm, cbasn1.SEQUENCE) &&
		algorithm.ReadASN1ObjectIdentifier(&hash) &&
		algorithm.ReadOptionalASN1(&null, &withParameters, cbasn1.NULL) && null.Empty() && algorithm.Empty() &&
		body.ReadASN1(&nameHash, cbasn1.OCTET_STRING) &&
		body.ReadASN1(&keyHash, cbasn1.OCTET_STRING) &&
		body.ReadASN1Integer(id.Serial) && body.Empty()
	if !isOK {
		return id, malformed("a CertID is not DER")
	}
	id.Hash, id.IssuerNameHash, id.IssuerKeyHash = hashOf(hash), nameHash, keyHash
	if id.Hash != 0 && (len(nameHash) != id.Hash.Size() || len(keyHash) != id.Hash.Size()) {
		return id, malformed("a CertID has hashes of %d and %d octets, and %v makes %d", len(nameHash), len(keyHash),
			id.Hash, id.Hash.Size())
	}
	return id, nil
}

func (r *Request) parseExtensions(explicit cryptobyte.String) error {
	return eachExtension(explicit, func(oid asn1.ObjectIdentifier, critical bool, value cryptobyte.String) error {
		switch {
		case oid.Equal(oidNonce):
			var nonce cryptobyte.String
			if !value.ReadASN1(&nonce, cbasn1.OCTET_STRING) || !value.Empty() {
				return malformed("nonce is not one OCTET STRING")
			}
			if len(nonce) == 0 || len(nonce) > MaxNonce {
				return malformed("nonce of %d octets is not of 1 to %d (RFC 9654 §2.1)", len(nonce), MaxNonce)
			}
			r.Nonce = nonce
		case oid.Equal(oidAcceptable):
			return checkAcceptable(value)
		case oid.Equal(oidPreferredSigAlg):
		case critical:
			return malformed("extension %v is critical and not known", oid)
		}
		return nil
	})
}

// checkAcceptable refuses a client that does not take the one response type there is (RFC 6960 §4.4.3).
func checkAcceptable(value cryptobyte.String) error {
	var types cryptobyte.String
	if !value.ReadASN1(&types, cbasn1.SEQUENCE) || !value.Empty() {
		return malformed("acceptable response types are not one SEQUENCE")
	}
	for !types.Empty() {
		var id asn1.ObjectIdentifier
		if !types.ReadASN1ObjectIdentifier(&id) {
			return malformed("an acceptable response type is not an OBJECT IDENTIFIER")
		}
		if id.Equal(oidBasic) {
			return nil
		}
	}
	return malformed("acceptable response types do not have id-pkix-ocsp-basic, the only one that is made")
}

func eachExtension(explicit cryptobyte.String, visit func(asn1.ObjectIdentifier, bool, cryptobyte.String) error) error {
	var list cryptobyte.String
	if !explicit.ReadASN1(&list, cbasn1.SEQUENCE) || !explicit.Empty() {
		return malformed("extensions are not one SEQUENCE")
	}
	var seen []asn1.ObjectIdentifier
	for !list.Empty() {
		var (
			body, value cryptobyte.String
			oid         asn1.ObjectIdentifier
			critical    bool
		)
		if !list.ReadASN1(&body, cbasn1.SEQUENCE) || !body.ReadASN1ObjectIdentifier(&oid) {
			return malformed("an extension is not DER")
		}
		if body.PeekASN1Tag(cbasn1.BOOLEAN) && !body.ReadASN1Boolean(&critical) {
			return malformed("extension %v: critical is not a BOOLEAN in DER", oid)
		}
		if !body.ReadASN1(&value, cbasn1.OCTET_STRING) || !body.Empty() {
			return malformed("extension %v has no single OCTET STRING as its value", oid)
		}
		for _, other := range seen {
			if other.Equal(oid) {
				return malformed("extension %v stands twice", oid)
			}
		}
		if seen = append(seen, oid); len(seen) > 16 {
			return malformed("more than 16 extensions")
		}
		if err := visit(oid, critical, value); err != nil {
			return err
		}
	}
	return nil
}

// DecodePath reads the request of a GET: what follows the responder's URL, in base64 and percent-encoded (RFC 6960
// appendix A.1.1). Clients that leave '/' and '+' bare, or leave the padding out, are understood.
func DecodePath(escaped string) ([]byte, error) {
	if len(escaped) > MaxRequest {
		return nil, malformed("a path of %d octets is over the limit of %d", len(escaped), MaxRequest)
	}
	text, err := url.PathUnescape(escaped)
	if err != nil {
		return nil, malformed("the path is not percent-encoded")
	}
	text = strings.TrimRight(text, "=")
	der, err := base64.RawStdEncoding.Strict().DecodeString(text)
	if err != nil {
		return nil, malformed("the path is not base64")
	}
	return der, nil
}

func context(tag uint8) cbasn1.Tag { return cbasn1.Tag(tag).ContextSpecific().Constructed() }

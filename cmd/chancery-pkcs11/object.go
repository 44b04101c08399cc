package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"strings"

	"github.com/miekg/pkcs11"

	"chancery/internal/store/token/wire"
)

// What version 2.40 of the standard, which the binding follows, does not name yet: version 3.0 of it.
const (
	ckkECEdwards = 0x40
	ckmEdDSA     = 0x1057
)

// find finds the one private key that is selected, and its public key.
func (m *module) find(t *token, s wire.Selector) (*key, error) {
	template := []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY)}
	if s.Object != "" {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_LABEL, s.Object))
	}
	if len(s.ID) > 0 {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_ID, s.ID))
	}
	found, err := m.objects(t, template, 9)
	if err != nil {
		return nil, err
	}
	switch {
	case len(found) == 0:
		others, err := m.objects(t, template[:1], 9)
		if err != nil {
			return nil, err
		}
		return nil, refuse(wire.Object, "it holds no such private key; %s", m.describe(t, others))
	case len(found) > 1:
		return nil, refuse(wire.Object, "several private keys fit, and object and id tell them apart; %s", m.describe(t, found))
	}
	k := &key{token: t, object: found[0], wire: wire.Key{
		Token: trim(t.info.Label), Serial: trim(t.info.SerialNumber), Manufacturer: trim(t.info.ManufacturerID), Model: trim(t.info.Model),
		Object: string(m.attribute(t, found[0], pkcs11.CKA_LABEL)), ID: m.attribute(t, found[0], pkcs11.CKA_ID),
		Extractable: m.is(t, found[0], pkcs11.CKA_EXTRACTABLE),
	}}
	k.keyType = number(m.attribute(t, found[0], pkcs11.CKA_KEY_TYPE))
	switch {
	case !m.is(t, k.object, pkcs11.CKA_SIGN):
		return nil, refuse(wire.Object, "the private key may not sign (CKA_SIGN is false)")
	case m.is(t, k.object, pkcs11.CKA_ALWAYS_AUTHENTICATE):
		return nil, refuse(wire.Object, "the private key wants the PIN again for each signature (CKA_ALWAYS_AUTHENTICATE), which nobody is there to give")
	}
	if err := m.canSign(k); err != nil {
		return nil, err
	}
	k.wire.SPKI, err = m.publicKey(k)
	return k, err
}

// objects lists up to most objects.
func (m *module) objects(t *token, template []*pkcs11.Attribute, most int) ([]pkcs11.ObjectHandle, error) {
	if err := m.lib.FindObjectsInit(t.keeper, template); err != nil {
		return nil, judge("look for objects", err)
	}
	var all []pkcs11.ObjectHandle
	var err error
	for len(all) < most && err == nil {
		var some []pkcs11.ObjectHandle
		if some, _, err = m.lib.FindObjects(t.keeper, most-len(all)); len(some) == 0 {
			break
		}
		all = append(all, some...)
	}
	if end := m.lib.FindObjectsFinal(t.keeper); err == nil {
		err = end
	}
	if err != nil {
		return nil, judge("look for objects", err)
	}
	return all, nil
}

// describe names private keys, so that the one who mistyped sees what there is.
func (m *module) describe(t *token, keys []pkcs11.ObjectHandle) string {
	if len(keys) == 0 {
		return "it holds none at all that this PIN shows"
	}
	var texts []string
	for _, k := range keys[:min(len(keys), 8)] {
		texts = append(texts, fmt.Sprintf("object %q id %s", m.attribute(t, k, pkcs11.CKA_LABEL), hex.EncodeToString(m.attribute(t, k, pkcs11.CKA_ID))))
	}
	if len(keys) > 8 {
		texts = append(texts, "and more")
	}
	return "there are " + strings.Join(texts, ", ")
}

// attribute returns one attribute, and nothing where the object has none; asked for several at once, libraries fail for all.
func (m *module) attribute(t *token, o pkcs11.ObjectHandle, kind uint) []byte {
	values, err := m.lib.GetAttributeValue(t.keeper, o, []*pkcs11.Attribute{pkcs11.NewAttribute(kind, nil)})
	if err != nil || len(values) != 1 {
		return nil
	}
	return values[0].Value
}

func (m *module) is(t *token, o pkcs11.ObjectHandle, kind uint) bool {
	v := m.attribute(t, o, kind)
	return len(v) == 1 && v[0] != 0
}

// number reads a CK_ULONG as this machine lays it out.
func number(b []byte) uint {
	switch len(b) {
	case 8:
		return uint(binary.NativeEndian.Uint64(b))
	case 4:
		return uint(binary.NativeEndian.Uint32(b))
	}
	return ^uint(0)
}

// canSign refuses a key whose token has no mechanism to sign with it.
func (m *module) canSign(k *key) error {
	mechanism, what := uint(0), ""
	switch k.keyType {
	case pkcs11.CKK_EC:
		mechanism, what = pkcs11.CKM_ECDSA, "ECDSA (CKM_ECDSA)"
	case pkcs11.CKK_RSA:
		mechanism, what = pkcs11.CKM_RSA_PKCS, "RSA, PKCS #1 v1.5 (CKM_RSA_PKCS)"
	case ckkECEdwards:
		mechanism, what = ckmEdDSA, "EdDSA (CKM_EDDSA)"
	default:
		return refuse(wire.Unable, "the private key is of type %#x; RSA, EC and EC_EDWARDS sign certificates", k.keyType)
	}
	info, err := m.lib.GetMechanismInfo(k.token.slot, []*pkcs11.Mechanism{pkcs11.NewMechanism(mechanism, nil)})
	if errors.Is(err, pkcs11.Error(pkcs11.CKR_MECHANISM_INVALID)) || err == nil && info.Flags&pkcs11.CKF_SIGN == 0 {
		return refuse(wire.Unable, "the token does not sign with %s; use a key of another type", what)
	}
	if err != nil {
		return judge("look at the mechanism", err)
	}
	return nil
}

// publicKey returns the public half as SubjectPublicKeyInfo: from the private key's object, the public key's, or a
// certificate's beside it. That it is this key's is for the node to prove, by a signature.
func (m *module) publicKey(k *key) ([]byte, error) {
	sources := []pkcs11.ObjectHandle{k.object}
	if len(k.wire.ID) > 0 {
		for _, class := range []uint{pkcs11.CKO_PUBLIC_KEY, pkcs11.CKO_CERTIFICATE} {
			beside, err := m.objects(k.token, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, class), pkcs11.NewAttribute(pkcs11.CKA_ID, k.wire.ID)}, 4)
			if err != nil {
				return nil, err
			}
			sources = append(sources, beside...)
		}
	}
	for _, o := range sources {
		get := func(kind uint) []byte { return m.attribute(k.token, o, kind) }
		if number(get(pkcs11.CKA_CLASS)) == pkcs11.CKO_CERTIFICATE {
			if c, err := x509.ParseCertificate(get(pkcs11.CKA_VALUE)); err == nil {
				return c.RawSubjectPublicKeyInfo, nil
			}
			continue
		}
		if public := publicFrom(k.keyType, get); public != nil {
			return x509.MarshalPKIXPublicKey(public)
		}
	}
	return nil, refuse(wire.Object, "no public key is beside the private one: store the public key, or a certificate, under the same id (CKA_ID)")
}

// publicFrom reads the public key of an object; nil where the object has none, or one of a kind that nothing here uses.
func publicFrom(keyType uint, get func(uint) []byte) any {
	switch keyType {
	case pkcs11.CKK_RSA:
		n, e := new(big.Int).SetBytes(get(pkcs11.CKA_MODULUS)), new(big.Int).SetBytes(get(pkcs11.CKA_PUBLIC_EXPONENT))
		if n.Sign() == 0 || e.Sign() == 0 || e.BitLen() > 31 {
			return nil
		}
		return &rsa.PublicKey{N: n, E: int(e.Int64())}
	case pkcs11.CKK_EC:
		curve := curveOf(get(pkcs11.CKA_EC_PARAMS))
		if curve == nil {
			return nil
		}
		public, err := ecdsa.ParseUncompressedPublicKey(curve, point(get(pkcs11.CKA_EC_POINT)))
		if err != nil {
			return nil
		}
		return public
	case ckkECEdwards:
		if p := point(get(pkcs11.CKA_EC_POINT)); isEd25519(get(pkcs11.CKA_EC_PARAMS)) && len(p) == ed25519.PublicKeySize {
			return ed25519.PublicKey(p)
		}
	}
	return nil
}

func curveOf(params []byte) elliptic.Curve {
	for der, curve := range map[string]elliptic.Curve{
		"\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07": elliptic.P256(), "\x06\x05\x2b\x81\x04\x00\x22": elliptic.P384(),
		"\x06\x05\x2b\x81\x04\x00\x23": elliptic.P521(),
	} {
		if string(params) == der {
			return curve
		}
	}
	return nil
}

// isEd25519 knows the curve by its object identifier (RFC 8410) and by the name that PKCS #11 3.0 has for it.
func isEd25519(params []byte) bool {
	return bytes.Equal(params, []byte("\x06\x03\x2b\x65\x70")) || bytes.Equal(params, []byte("\x13\x0cedwards25519"))
}

// point takes CKA_EC_POINT out of its OCTET STRING, which some libraries leave off.
func point(value []byte) []byte {
	var inner []byte
	if rest, err := asn1.Unmarshal(value, &inner); err == nil && len(rest) == 0 {
		return inner
	}
	return value
}

package main

import (
	"encoding/binary"

	"github.com/miekg/pkcs11"

	"chancery/internal/store/token/wire"
)

// maxSignature is that of an RSA key of 32,768 bits.
const maxSignature = 4096

// sign signs with an opened key.
func (s *sessions) sign(numbered []byte, mechanism wire.Mechanism, data []byte) ([]byte, error) {
	k, err := s.module.key(binary.BigEndian.Uint32(numbered))
	if err != nil {
		return nil, err
	}
	how, keyType := mechanismOf(mechanism)
	if how == nil || keyType != k.keyType {
		return nil, refuse(wire.Refused, "mechanism %d is not one of a key of type %#x", mechanism, k.keyType)
	}
	open, err := s.on(k.token)
	if err != nil {
		return nil, err
	}
	if open.shared != nil {
		open.shared.Lock()
		defer open.shared.Unlock()
	}
	lib := s.module.lib
	if err := lib.SignInit(open.handle, []*pkcs11.Mechanism{how}, k.object); err != nil {
		return nil, judge("begin to sign", err)
	}
	signature, err := lib.Sign(open.handle, data)
	if err != nil {
		return nil, judge("sign", err)
	}
	if len(signature) > maxSignature {
		return nil, refuse(wire.Failed, "sign: the library says that the signature has %d octets", len(signature))
	}
	return signature, nil
}

func mechanismOf(m wire.Mechanism) (how *pkcs11.Mechanism, keyType uint) {
	pss := func(hash, mask, salt uint) *pkcs11.Mechanism {
		return pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS_PSS, pkcs11.NewPSSParams(hash, mask, salt))
	}
	switch m {
	case wire.ECDSA:
		return pkcs11.NewMechanism(pkcs11.CKM_ECDSA, nil), pkcs11.CKK_EC
	case wire.PKCS1:
		return pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS, nil), pkcs11.CKK_RSA
	case wire.PSSWithSHA256:
		return pss(pkcs11.CKM_SHA256, pkcs11.CKG_MGF1_SHA256, 32), pkcs11.CKK_RSA
	case wire.PSSWithSHA384:
		return pss(pkcs11.CKM_SHA384, pkcs11.CKG_MGF1_SHA384, 48), pkcs11.CKK_RSA
	case wire.PSSWithSHA512:
		return pss(pkcs11.CKM_SHA512, pkcs11.CKG_MGF1_SHA512, 64), pkcs11.CKK_RSA
	case wire.EdDSA:
		return pkcs11.NewMechanism(ckmEdDSA, nil), ckkECEdwards
	}
	return nil, 0
}

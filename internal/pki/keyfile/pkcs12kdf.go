package keyfile

import (
	"crypto/cipher"
	encasn1 "encoding/asn1"

	"golang.org/x/crypto/cryptobyte"
)

func pkcs12Mode(oid encasn1.ObjectIdentifier, params cryptobyte.String, bmp []byte, left *budget) (cipher.BlockMode, error) {
	return nil, unknownPBE(oid)
}

package examine

import (
	"crypto/x509"

	"chancery/internal/pki/keyfile"
)

func keyfileCertificates(all ...*x509.Certificate) []byte { return keyfile.EncodeCertificates(all...) }

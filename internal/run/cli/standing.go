package cli

import (
	"strconv"

	"chancery/client"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
)

// trustVersion says a version of a trust set; nothing of none.
func trustVersion(n int64) string {
	if n == 0 {
		return ""
	}
	return client.TrustVersion(n)
}

// standing is where a placement stands in changes of trust and issuers.
func standing(o client.Observation) []field {
	fields := []field{{"  issuer (SHA-256)", printable(o.Issuer)}, {"  trust", trustVersion(o.Trust)}, {"  CRLs until", stamp(o.CRLEnds)}}
	if o.Reissued != 0 {
		fields = append(fields, field{"  re-issued as", strconv.FormatInt(o.Reissued, 10)})
	}
	for _, text := range o.Announced {
		fields = append(fields, field{"  announced", serialOf(text)})
	}
	if n := len(o.Pinned); n > 0 {
		fields = append(fields, field{"  pinned", strconv.Itoa(n)})
	}
	return fields
}

// serialOf is the serial number of a certificate in PEM, as an agent sent it.
func serialOf(text string) string {
	all, err := keyfile.ParseCertificates([]byte(text))
	if err != nil || len(all) == 0 {
		return "what cannot be read"
	}
	return cert.FormatSerial(all[0].SerialNumber)
}

package cert

import (
	"crypto/rand"
	"fmt"
	"math/big"
	"strings"

	"chancery/internal/fault"
)

// NewSerial returns a positive serial number of 159 random bits: RFC 5280 4.1.2.2 allows 20 octets, and the sign bit is
// clear.
func NewSerial() (*big.Int, error) {
	var octets [20]byte
	for {
		if _, err := rand.Read(octets[:]); err != nil {
			return nil, fmt.Errorf("read random serial number: %w", err)
		}
		octets[0] &= 0x7f
		if serial := new(big.Int).SetBytes(octets[:]); serial.Sign() > 0 {
			return serial, nil
		}
	}
}

// FormatSerial writes a serial number as its DER octets in lower-case hexadecimal, the form that openssl and certtool
// print too.
func FormatSerial(serial *big.Int) string {
	if serial.Sign() < 0 {
		return "-" + FormatSerial(new(big.Int).Neg(serial))
	}
	text := serial.Text(16)
	if len(text)%2 != 0 {
		text = "0" + text
	}
	return text
}

// ParseSerial reads hexadecimal, with or without 0x and colons, as FormatSerial and other tools write it.
func ParseSerial(text string) (*big.Int, error) {
	digits := strings.ReplaceAll(strings.TrimPrefix(strings.TrimPrefix(strings.TrimSpace(text), "0x"), "0X"), ":", "")
	serial, ok := new(big.Int).SetString(digits, 16)
	if !ok || strings.HasPrefix(digits, "+") || strings.Contains(digits, "_") {
		return nil, fault.New(fault.Invalid, "serial number %q is not hexadecimal, such as 1f03c9", text)
	}
	return serial, nil
}

package loop

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"

	"chancery/internal/agent/place"
	"chancery/internal/agent/recipe"
	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
)

// actionMatch is the action that reads the placed files again and refuses a key and a certificate that do not belong
// together. All was checked before it was written (law 3); this is for a consumer that ends itself where another program
// changed a file since, and whose own check says nothing.
const actionMatch = "match-pair"

// matchPairs matches, for each certificate of the plan, the key on disk with the certificates on disk.
func (c *consumer) matchPairs() error {
	matched := 0
	for _, planned := range c.plan.Certificates {
		var keys, leaves []onDisk
		for _, f := range c.plan.Files {
			if f.Of != planned.ID || f.Format != "pem" && f.Format != "der" {
				continue
			}
			found, err := c.onDisk(f)
			if err != nil {
				return err
			}
			if found.key != nil {
				keys = append(keys, found)
			}
			if found.leaf != nil {
				leaves = append(leaves, found)
			}
		}
		for _, key := range keys {
			for _, leaf := range leaves {
				if err := keyfile.CheckPair(key.key, leaf.leaf); err != nil {
					return fault.New(fault.Conflict, "the key in %s and the certificate in %s do not belong together; another program has changed one "+
						"of them since it was placed: %w", key.path, leaf.path, err)
				}
				matched++
			}
		}
	}
	if matched == 0 {
		return fault.New(fault.Invalid, "the recipe places no key and certificate as PEM or DER, so there is nothing to match")
	}
	return nil
}

// onDisk is what a placed file holds of a certificate.
type onDisk struct {
	path string
	key  any // the public half
	leaf *x509.Certificate
}

func (c *consumer) onDisk(f recipe.PlannedFile) (onDisk, error) {
	found := onDisk{path: f.Path}
	leaf := slices.ContainsFunc(f.Content, func(content string) bool { return content == "leaf" || content == "path" || content == "path-reversed" })
	if !f.Secret() && !leaf {
		return found, nil
	}
	text, err := place.ReadPlain(c.system.Root, f.Path, keyfile.MaxFile)
	if err != nil {
		return found, err
	}
	defer clear(text)
	if f.Secret() {
		if found.key, err = keyfile.PublicKeyOf(privateBlock(text), nil); err != nil {
			return found, fmt.Errorf("%s: %w", f.Path, err)
		}
	}
	if leaf {
		all, err := keyfile.ParseCertificates(certificateBlocks(text))
		if err == nil && len(all) == 0 {
			err = errors.New("it holds no certificate")
		}
		if err != nil {
			return found, fmt.Errorf("%s: %w", f.Path, err)
		}
		if found.leaf = all[0]; slices.Contains(f.Content, "path-reversed") {
			found.leaf = all[len(all)-1]
		}
	}
	return found, nil
}

// privateBlock is the key in a file that may hold certificates too; a file without PEM is handed on as it is.
func privateBlock(text []byte) []byte {
	return blocks(text, func(kind string) bool { return kind != "CERTIFICATE" && kind != "X509 CRL" })
}

func certificateBlocks(text []byte) []byte {
	return blocks(text, func(kind string) bool { return kind == "CERTIFICATE" })
}

// blocks are those PEM blocks of a text whose type is wanted; a text without any block is DER, and is what it is.
func blocks(text []byte, wanted func(kind string) bool) []byte {
	var out bytes.Buffer
	any := false
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		any = true
		if wanted(block.Type) {
			_ = pem.Encode(&out, block) // a buffer takes all
		}
	}
	if !any {
		return text
	}
	return out.Bytes()
}

package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"chancery/internal/pki/keyfile"
)

type keyCommands struct {
	Generate keyGenerateCommand `cmd:"" help:"Make a private key: on standard output, or in --out with mode 0600."`
	ID       keyIDCommand       `cmd:"" name:"id" help:"Print the key identifiers of a key, a certificate or a request, or convert one."`
}

type keyGenerateCommand struct {
	Algorithm string `default:"rsa" help:"rsa, ecdsa or ed25519, or with the size in the name: rsa-4096, p384."`
	Bits      int    `help:"Size in bits; 3072 for rsa and 256 for ecdsa when not given."`
	Out       string `aliases:"outfile" type:"path" placeholder:"F" help:"File to write; it must not exist. Its mode is 0600 less the umask."`
	Format    string `enum:"traditional,pkcs8" default:"traditional" help:"Traditional (PKCS#1, SEC 1), as certtool writes it, or pkcs8."`
}

// Run makes the key. What is said of it goes to standard error, so that standard output holds the key and nothing else.
func (c *keyGenerateCommand) Run(g *globals) error {
	algorithm, err := keyfile.ParseAlgorithm(c.Algorithm)
	if err != nil {
		return err
	}
	bits, err := algorithm.Bits(c.Bits)
	if err != nil {
		return err
	}
	family, _, _ := strings.Cut(string(algorithm), "-")
	name := map[string]string{"rsa": "RSA", "ecdsa": "ECDSA", "ed25519": "EdDSA (Ed25519)"}[family]
	g.say("Generating a %d bit %s private key...", bits, name)
	key, err := keyfile.Generate(algorithm, c.Bits)
	if err != nil {
		return err
	}
	encode := keyfile.EncodeTraditional
	if c.Format == "pkcs8" {
		encode = keyfile.EncodePKCS8
	}
	text, err := encode(key)
	if err != nil {
		return err
	}
	defer clear(text)
	if c.Out == "" {
		if wide := wideOutput(g); wide != "" {
			g.say("warning: %s; use umask 077, or --out", wide)
		}
	}
	return g.write(c.Out, text, 0o600)
}

// wideOutput says so when standard output is a regular file that others may read: the shell made it before we were
// started, so all that is left is to warn.
func wideOutput(g *globals) string {
	f, ok := g.Out.(*os.File)
	if !ok {
		return ""
	}
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() || st.Mode().Perm()&0o077 == 0 {
		return ""
	}
	return fmt.Sprintf("the file on standard output has mode %04o, so others can read the key", st.Mode().Perm())
}

type keyIDCommand struct {
	Source       string `arg:"" name:"FILE|HEX" help:"A key, certificate or request in PEM or DER; or an identifier in hexadecimal or its signed form (after -- when it begins with a minus)."`
	PasswordFile string `placeholder:"F|-" help:"Password of an encrypted key."`
}

// Run prints the identifiers, one a line with its label.
func (c *keyIDCommand) Run(g *globals) error {
	var ids struct {
		NSS     string `json:"nss"`
		Signed  string `json:"signed"`
		RFC5280 string `json:"rfc5280,omitempty"`
	}
	data, err := g.key(c.Source)
	if errors.Is(err, fs.ErrNotExist) {
		id, parseErr := keyfile.ParseKeyID(c.Source)
		if parseErr != nil {
			return fmt.Errorf("%s is no file, and as an identifier: %w", c.Source, parseErr)
		}
		ids.NSS, ids.Signed = id.String(), id.Signed()
		return g.show(ids, field{"nss", ids.NSS}, field{"signed", ids.Signed})
	}
	if err != nil {
		return err
	}
	var password []byte
	if c.PasswordFile != "" {
		if password, err = g.secret(c.PasswordFile, "password"); err != nil {
			return err
		}
	}
	pub, err := keyfile.PublicKeyOf(data, password)
	if err != nil {
		return err
	}
	nss, err := keyfile.NSSKeyID(pub)
	if err != nil {
		return err
	}
	rfc, err := keyfile.RFC5280KeyID(pub)
	if err != nil {
		return err
	}
	ids.NSS, ids.Signed, ids.RFC5280 = nss.String(), nss.Signed(), rfc.String()
	return g.show(ids, field{"nss", ids.NSS}, field{"signed", ids.Signed}, field{"rfc5280", ids.RFC5280})
}

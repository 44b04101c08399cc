package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"chancery/internal/fault"
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
	Source       string `arg:"" name:"FILE|HEX" help:"A key, certificate or request in PEM or DER; or an identifier, in the form that --from says (after -- when it begins with a minus)."`
	From         string `enum:"auto,file,nss,bigint,decimal,ski" default:"auto" help:"What is given: a file; 40 digits as certutil -K prints them (nss); Dogtag's signed number in hexadecimal (bigint) or decimal; a subjectKeyIdentifier (ski). auto takes a file, else nss or bigint."`
	PasswordFile string `placeholder:"F|-" help:"Password of an encrypted key."`
}

// keyIDs are the forms of one key's identifiers. The NSS form and the signed ones say the same, so that each gives the other; that of
// RFC 5280 is of other octets where the key is RSA, and needs the key itself.
type keyIDs struct {
	NSS     string `json:"nss,omitempty"`
	Signed  string `json:"signed,omitempty"`
	Decimal string `json:"decimal,omitempty"`
	RFC5280 string `json:"rfc5280,omitempty"`
}

// Run prints the identifiers, one a line with its label.
func (c *keyIDCommand) Run(g *globals) error {
	ids, err := c.identifiers(g)
	if err != nil {
		return err
	}
	return g.show(ids, field{"nss", ids.NSS}, field{"signed", ids.Signed}, field{"decimal", ids.Decimal}, field{"rfc5280", ids.RFC5280})
}

func (c *keyIDCommand) identifiers(g *globals) (*keyIDs, error) {
	switch c.From {
	case "nss", "ski":
		id, err := keyfile.ParseKeyID(c.Source)
		if err != nil || len(strings.NewReplacer(":", "", " ", "").Replace(c.Source)) != 2*len(id) {
			return nil, fault.New(fault.Invalid, "%q is no identifier of 40 hexadecimal digits", printable(c.Source))
		}
		if c.From == "ski" { // that of an EC key is its NSS identifier too, but nothing here says of which kind the key is
			g.say("The NSS form of an EC key's identifier is the same; of an RSA key's it takes the key or its certificate.")
			return &keyIDs{RFC5280: id.String()}, nil
		}
		return formsOf(id), nil
	case "decimal":
		id, err := keyfile.ParseDecimalKeyID(c.Source)
		return formsOf(id), err
	case "bigint":
		id, err := keyfile.ParseKeyID(c.Source)
		return formsOf(id), err
	}
	data, err := g.key(c.Source)
	if errors.Is(err, fs.ErrNotExist) && c.From == "auto" {
		id, parseErr := keyfile.ParseKeyID(c.Source)
		if parseErr != nil {
			return nil, fmt.Errorf("%s is no file, and as an identifier: %w", c.Source, parseErr)
		}
		return formsOf(id), nil
	}
	if err != nil {
		return nil, err
	}
	defer clear(data)
	var password []byte
	if c.PasswordFile != "" {
		if password, err = g.secret(c.PasswordFile, "password"); err != nil {
			return nil, err
		}
	}
	pub, err := keyfile.PublicKeyOf(data, password)
	if err != nil {
		return nil, err
	}
	nss, err := keyfile.NSSKeyID(pub)
	if err != nil {
		return nil, err
	}
	rfc, err := keyfile.RFC5280KeyID(pub)
	if err != nil {
		return nil, err
	}
	ids := formsOf(nss)
	ids.RFC5280 = rfc.String()
	return ids, nil
}

func formsOf(id keyfile.KeyID) *keyIDs {
	return &keyIDs{NSS: id.String(), Signed: id.Signed(), Decimal: id.Decimal()}
}

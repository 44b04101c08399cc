package cli

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/certtool"
	"chancery/internal/pki/keyfile"
)

type certCommands struct {
	Issue   certIssueCommand   `cmd:"" help:"Issue a certificate from a profile or a certtool template."`
	Show    certShowCommand    `cmd:"" help:"Print a certificate: of a file, or of this authority by its serial."`
	List    certListCommand    `cmd:"" help:"Search what was issued."`
	Renew   certRenewCommand   `cmd:"" help:"Same key and names, new validity."`
	Rekey   certRekeyCommand   `cmd:"" help:"Same names, new key."`
	Revoke  certRevokeCommand  `cmd:"" help:"Revoke for good; a hold becomes permanent."`
	Hold    certHoldCommand    `cmd:"" help:"Revoke for a while (reason certificateHold)."`
	Release certReleaseCommand `cmd:"" help:"End a hold."`

	ProveRevoked certProveCommand `cmd:"" help:"Have hosts show a revoked certificate to their own consumers, and say who still takes it."`
}

// keySource is the key that a certificate is to be for: given itself, or by a request that it signed.
type keySource struct {
	Key          string `type:"path" placeholder:"K" help:"Private key; it stays here, a request signed by it is sent."`
	PasswordFile string `placeholder:"F|-" help:"Password of the key."`
	CSR          string `type:"path" placeholder:"C" help:"PKCS #10 request, instead of --key."`
}

// request returns the PEM of the request to send. Made from a key, it has an empty subject: the names come from elsewhere.
func (s *keySource) request(g *globals) (string, error) {
	if (s.Key == "") == (s.CSR == "") {
		return "", usage("give --key or --csr, and not both")
	}
	if s.CSR != "" {
		text, err := g.readAll(s.CSR)
		if err != nil {
			return "", err
		}
		if err := cert.CheckPEMEnd(text); err != nil {
			return "", fmt.Errorf("%s: %w", s.CSR, err)
		}
		if block, _ := pem.Decode(text); block == nil { // DER
			text = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: text})
		}
		return string(text), nil
	}
	key, err := g.privateKey(s.Key, s.PasswordFile)
	if err != nil {
		return "", err
	}
	der, err := cert.CreateCSR(&cert.CSRTemplate{}, key)
	if err != nil {
		return "", err
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), nil
}

func (g *globals) privateKey(file, passwordFile string) (crypto.Signer, error) {
	text, err := g.key(file)
	if err != nil {
		return nil, err
	}
	defer clear(text)
	var password []byte
	if passwordFile != "" {
		if password, err = g.secret(passwordFile, "password"); err != nil {
			return nil, err
		}
	}
	key, err := keyfile.ParsePrivateKey(text, password)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return key, nil
}

func certificateFields(c *client.Certificate) []field {
	fields := []field{
		{"serial", c.Serial}, {"issuer", printable(c.Issuer)}, {"subject", printable(c.Subject)},
		{"names", printable(strings.Join(c.SAN, ", "))}, {"not before", stamp(c.NotBefore)}, {"not after", stamp(c.NotAfter)},
		{"state", c.State}, {"profile", c.Profile}, {"requester", printable(c.Requester)},
	}
	if r := c.Revocation; r != nil {
		fields = append(fields, field{"revoked", stamp(r.At)}, field{"reason", r.Reason})
		if r.InvalidSince != nil {
			fields = append(fields, field{"invalid since", stamp(*r.InvalidSince)})
		}
	}
	return append(fields, field{"sha256", c.Fingerprint}, field{"subject key id", c.KeyID})
}

type certShowCommand struct {
	What   string `arg:"" name:"FILE|SERIAL" help:"A file with a certificate (PEM or DER), or the serial of one of this authority."`
	Issuer string `placeholder:"I" help:"Issuer, where two share the serial."`
	PEM    bool   `name:"pem" help:"Print the certificate of SERIAL in PEM."`
	Chain  bool   `help:"With --pem: and its issuers below the root."`
}

// Run prints a file in certtool's sections, without a node; a serial is looked up.
func (c *certShowCommand) Run(ctx context.Context, g *globals) error {
	if text, err := g.readAll(c.What); err == nil {
		certificates, err := keyfile.ParseCertificates(text)
		if err != nil {
			return fmt.Errorf("%s: %w", c.What, err)
		}
		for _, certificate := range certificates {
			if err := c.printFile(g, certificate); err != nil {
				return err
			}
		}
		return nil
	}
	if _, err := cert.ParseSerial(c.What); err != nil {
		return fault.New(fault.Invalid, "%s is no file that can be read, and no serial: %w", c.What, err)
	}
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	found, err := api.Certificate(ctx, c.Issuer, c.What)
	if err != nil {
		return err
	}
	if c.PEM {
		text := found.PEM
		if c.Chain {
			text += found.Chain
		}
		return g.write("", []byte(text), 0)
	}
	return g.show(found, certificateFields(found)...)
}

func (c *certShowCommand) printFile(g *globals, certificate *x509.Certificate) error {
	if g.Output == "json" {
		names, err := namesOf(certificate)
		if err != nil {
			return err
		}
		subject, err := cert.ParseNameDER(certificate.RawSubject)
		if err != nil {
			return err
		}
		issuer, err := cert.ParseNameDER(certificate.RawIssuer)
		if err != nil {
			return err
		}
		return g.json(client.Certificate{
			Serial: cert.FormatSerial(certificate.SerialNumber), Subject: subject.String(), Issuer: issuer.String(), SAN: names,
			NotBefore: certificate.NotBefore, NotAfter: certificate.NotAfter,
		})
	}
	return certtool.Print(g.Out, certificate.Raw)
}

type certListCommand struct {
	Name    string `placeholder:"N" help:"Alternative or common name, or its beginning followed by *."`
	Serial  string `placeholder:"HEX" help:"Serial."`
	Issuer  string `placeholder:"I" help:"Issuer."`
	Profile string `placeholder:"P" help:"Profile."`
	State   string `enum:"valid,held,revoked,expired," default:"" help:"valid, held, revoked or expired."`
	Expires string `placeholder:"30d" help:"Ends within this time from now."`
	Export  string `enum:"csv,json," default:"" help:"Write all that match as csv, or as json, one object a line."`
	Out     string `type:"path" placeholder:"F" help:"With --export: file to write."`
}

// Run lists, oldest first.
func (c *certListCommand) Run(ctx context.Context, g *globals) error {
	f := client.CertificateFilter{Name: c.Name, Serial: c.Serial, Issuer: c.Issuer, Profile: c.Profile, State: c.State}
	if c.Expires != "" {
		within, err := lengthOf(c.Expires)
		if err != nil {
			return err
		}
		f.After = time.Now()
		f.Before = f.After.Add(within)
	}
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	if c.Export != "" {
		return g.toFile(c.Out, 0o644, "exporting", func(w writer) error { return api.ExportCertificates(ctx, w, f, c.Export) })
	}
	return list(g, api.Certificates(ctx, f), "SERIAL ISSUER STATE EXPIRES PROFILE NAME", func(r client.Certificate) []string {
		name := r.Subject
		if len(r.SAN) > 0 {
			name = strings.Join(r.SAN, ",")
		}
		return []string{r.Serial, r.Issuer, r.State, day(r.NotAfter), orDash(r.Profile), orDash(name)}
	})
}

// serialArg names a certificate of this authority.
type serialArg struct {
	Serial string `arg:"" name:"SERIAL" help:"Serial in hexadecimal."`
	Issuer string `placeholder:"I" help:"Issuer, where two share the serial."`
}

type certRenewCommand struct {
	serialArg `embed:""`
	Validity  string `placeholder:"V" help:"How long, such as 90d; the profile's when not given."`
	Out       string `type:"path" placeholder:"F" help:"File to write."`
	Chain     bool   `help:"Write the issuers below the root as well."`
}

// Run renews.
func (c *certRenewCommand) Run(ctx context.Context, g *globals) error {
	if err := absent(c.Out); err != nil {
		return err
	}
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	result, err := api.Renew(ctx, c.Issuer, c.Serial, client.RenewRequest{Validity: c.Validity})
	if err != nil {
		return err
	}
	return g.issued(result, c.Out, c.Chain, false)
}

type certRekeyCommand struct {
	serialArg `embed:""`
	keySource `embed:""`
	Validity  string `placeholder:"V" help:"How long, such as 90d; the profile's when not given."`
	Out       string `type:"path" placeholder:"F" help:"File to write."`
	Chain     bool   `help:"Write the issuers below the root as well."`
}

// Run re-keys.
func (c *certRekeyCommand) Run(ctx context.Context, g *globals) error {
	csr, err := c.request(g)
	if err != nil {
		return err
	}
	if err := absent(c.Out); err != nil {
		return err
	}
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	result, err := api.Rekey(ctx, c.Issuer, c.Serial, client.RekeyRequest{CSR: csr, Validity: c.Validity})
	if err != nil {
		return err
	}
	return g.issued(result, c.Out, c.Chain, false)
}

type certRevokeCommand struct {
	serialArg    `embed:""`
	Reason       string `default:"unspecified" enum:"${reasons},${reason_numbers}" placeholder:"R" help:"One of ${reasons}; or its number in RFC 5280, 0 to 6, 9 or 10."`
	InvalidSince string `aliases:"invalidity-date" placeholder:"TIME" help:"Since when the key is thought compromised (RFC 3339)."`
}

// Run revokes.
func (c *certRevokeCommand) Run(ctx context.Context, g *globals) error {
	c.Reason = reasonName(c.Reason)
	if c.Reason == "certificateHold" {
		if c.InvalidSince != "" {
			return usage("a hold has no --invalid-since")
		}
		return g.change(func(api *client.Client) (*client.Certificate, error) { return api.Hold(ctx, c.Issuer, c.Serial) })
	}
	in := client.RevokeRequest{Reason: c.Reason}
	if c.InvalidSince != "" {
		at, err := time.Parse(time.RFC3339, c.InvalidSince)
		if err != nil {
			return usage("--invalid-since %q is not of the form 2027-02-28T16:24:41Z", c.InvalidSince)
		}
		in.InvalidSince = &at
	}
	return g.change(func(api *client.Client) (*client.Certificate, error) { return api.Revoke(ctx, c.Issuer, c.Serial, in) })
}

// reasonName is the reason with that number of RFC 5280 5.3.1; what is no such number is returned as it is.
func reasonName(text string) string {
	for i, number := range strings.Split(reasonNumbers, ",") {
		if number == text {
			return strings.Split(reasons, ",")[i]
		}
	}
	return text
}

// The reasons for which a certificate is revoked, and their numbers in RFC 5280 5.3.1. 7 is not used; 8, removeFromCRL, is said
// by delta CRLs only.
const (
	reasons = "unspecified,keyCompromise,cACompromise,affiliationChanged,superseded,cessationOfOperation,certificateHold," +
		"privilegeWithdrawn,aACompromise"
	reasonNumbers = "0,1,2,3,4,5,6,9,10"
)

type certHoldCommand struct {
	serialArg `embed:""`
}

// Run holds.
func (c *certHoldCommand) Run(ctx context.Context, g *globals) error {
	return g.change(func(api *client.Client) (*client.Certificate, error) { return api.Hold(ctx, c.Issuer, c.Serial) })
}

type certReleaseCommand struct {
	serialArg `embed:""`
}

// Run releases.
func (c *certReleaseCommand) Run(ctx context.Context, g *globals) error {
	return g.change(func(api *client.Client) (*client.Certificate, error) { return api.Release(ctx, c.Issuer, c.Serial) })
}

// change does something to a certificate and shows what it is now.
func (g *globals) change(act func(*client.Client) (*client.Certificate, error)) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	c, err := act(api)
	if err != nil {
		return err
	}
	for _, w := range c.Warnings {
		g.say("warning: %s", printable(w))
	}
	if g.Output == "json" {
		return g.json(c)
	}
	if c.Revocation != nil {
		g.say("%s is %s since %s (%s)", c.Serial, c.State, stamp(c.Revocation.At), c.Revocation.Reason)
	} else {
		g.say("%s is %s", c.Serial, c.State)
	}
	return nil
}

// namesOf lists the alternative names of a certificate, each with its kind.
func namesOf(certificate *x509.Certificate) ([]string, error) {
	for _, e := range certificate.Extensions {
		if !e.Id.Equal(cert.OIDSubjectAltName) {
			continue
		}
		names, err := cert.ParseGeneralNames(e.Value)
		if err != nil {
			return nil, err
		}
		var out []string
		for _, n := range names {
			out = append(out, n.String())
		}
		return out, nil
	}
	return nil, nil
}

// lengthOf reads a length of time such as 90d, 36h or 10y.
func lengthOf(text string) (time.Duration, error) {
	d, err := cert.ParseDuration(text)
	return time.Duration(d), err
}

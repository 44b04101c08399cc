package loop

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"chancery/internal/agent/recipe"
)

// actionOpenLDAP is the action that has slapd read its TLS files again: one modification of cn=config over its ldapi socket,
// as the user that the agent runs as (SASL EXTERNAL, RFC 4422 appendix A). slapd makes a new TLS context whenever an olcTLS
// attribute of cn=config is written, be it with the value that it has; new connections get it, open ones stay. It has no
// other way but a restart: SIGHUP ends it.
//
// All attributes are in one modification, because slapd tries the new context after each: a certificate without its key is
// refused with "other" (80), and so is a key that is not the certificate's. After such a refusal slapd has no TLS context
// at all until a modification succeeds, so key and certificate are compared before.
const actionOpenLDAP = "set-openldap-files"

const (
	openldapTimeout = 30 * time.Second
	openldapAnswer  = 64 << 10
)

// The tags of RFC 4511 that are used here.
const (
	ldapBindRequest    = asn1.Tag(0 | 0x60)
	ldapBindResponse   = asn1.Tag(1 | 0x60)
	ldapModifyRequest  = asn1.Tag(6 | 0x60)
	ldapModifyResponse = asn1.Tag(7 | 0x60)
	ldapSASL           = asn1.Tag(3 | 0xa0)
)

// ldapReplace is the kind of change that sets an attribute's values, RFC 4511 section 4.6.
const ldapReplace = 2

// ldapAttribute is an attribute with its one value; without one it is to have none, and need not be there (RFC 4511 section 4.6).
type ldapAttribute struct{ name, value string }

// setOpenLDAPFiles tells slapd the paths of the plan's files, which it reads at once, and takes back the settings that named
// files of the plan before which are gone. Either plan may be nil.
func (c *consumer) setOpenLDAPFiles(ctx context.Context, step recipe.Step, plan, before *recipe.Plan) error {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(time.Duration(step.Timeout), openldapTimeout))
	defer cancel()
	socket := c.system.Path(step.With["socket"])
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("slapd is told over ldapi, for which it needs ldapi:/// among the addresses it listens at (-h): %w", err)
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
	}
	answers := io.LimitReader(conn, openldapAnswer)
	if err := askLDAP(conn, answers, 1, ldapBindResponse, bindExternal); err != nil {
		return fmt.Errorf("bind to %s by SASL EXTERNAL: %w", socket, err)
	}
	attributes := openldapChange(plan, before, c.system.Path)
	err = askLDAP(conn, answers, 2, ldapModifyResponse, func(b *cryptobyte.Builder) { modifyConfig(b, attributes) })
	if err == nil {
		return nil
	}
	var refused *ldapRefusal
	switch {
	case errors.As(err, &refused) && refused.code == 50:
		err = fmt.Errorf("%w: give the agent's user manage on olcDatabase={0}config, as Debian does for root: "+
			"olcAccess: to * by dn.exact=gidNumber=0+uidNumber=0,cn=peercred,cn=external,cn=auth manage by * break", err)
	case errors.As(err, &refused) && refused.code == 80:
		err = fmt.Errorf("%w: slapd cannot use the files, and has no TLS until it is given some that it can; its log says which and why", err)
	}
	return fmt.Errorf("modify cn=config over %s: %w", socket, err)
}

// openldapAttributes are the settings that name the plan's files. slapd with GnuTLS takes CRLs from a file; with OpenSSL from
// a hashed directory, and looks at them where olcTLSCRLCheck says so.
func openldapAttributes(files []recipe.PlannedFile, path func(string) string) []ldapAttribute {
	var all []ldapAttribute
	add := func(name, value string) { all = append(all, ldapAttribute{name, value}) }
	for _, f := range files {
		has := func(content string) bool { return slices.Contains(f.Content, content) }
		at := path(f.Path)
		switch {
		case f.Format == "hashdir":
			add("olcTLSCACertificatePath", at)
			if has("crls") {
				add("olcTLSCRLCheck", "all")
			}
		case f.Format != "pem":
		case has("key"):
			add("olcTLSCertificateKeyFile", at)
		case has("path"):
			add("olcTLSCertificateFile", at)
		case has("anchors"):
			add("olcTLSCACertificateFile", at)
		case has("crls"):
			add("olcTLSCRLFile", at)
		}
	}
	return all
}

// openldapChange are the settings of a plan, and before them those that named files of the plan before and name none now, each
// without a value: a setting that names a file which is gone is refused with "other", whatever else is said with it, and keeps
// slapd from starting. What an operator set himself is left alone.
func openldapChange(plan, before *recipe.Plan, path func(string) string) []ldapAttribute {
	var now, then []ldapAttribute
	if plan != nil {
		now = openldapAttributes(plan.Files, path)
	}
	if before != nil {
		then = openldapAttributes(before.Files, path)
	}
	var gone []ldapAttribute
	for _, a := range then {
		if !slices.ContainsFunc(now, func(b ldapAttribute) bool { return a.name == b.name }) {
			gone = append(gone, ldapAttribute{name: a.name})
		}
	}
	return append(gone, now...)
}

// bindExternal is a BindRequest of version 3, SASL mechanism EXTERNAL: who one is, the kernel tells the server.
func bindExternal(b *cryptobyte.Builder) {
	b.AddASN1(ldapBindRequest, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(3)
		b.AddASN1OctetString(nil)
		b.AddASN1(ldapSASL, func(b *cryptobyte.Builder) {
			b.AddASN1OctetString([]byte("EXTERNAL"))
			b.AddASN1OctetString(nil)
		})
	})
}

func modifyConfig(b *cryptobyte.Builder, attributes []ldapAttribute) {
	b.AddASN1(ldapModifyRequest, func(b *cryptobyte.Builder) {
		b.AddASN1OctetString([]byte("cn=config"))
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			for _, a := range attributes {
				b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1Enum(ldapReplace)
					b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddASN1OctetString([]byte(a.name))
						b.AddASN1(asn1.SET, func(b *cryptobyte.Builder) {
							if a.value != "" {
								b.AddASN1OctetString([]byte(a.value))
							}
						})
					})
				})
			}
		})
	})
}

// ldapRefusal is an LDAPResult that is not success.
type ldapRefusal struct {
	code       int
	diagnostic string
}

func (r *ldapRefusal) Error() string {
	text := fmt.Sprintf("slapd answers with result code %d", r.code)
	if r.diagnostic != "" {
		text += ", " + cut(r.diagnostic, 200)
	}
	return text
}

// errLDAP says that what came is no LDAP response to what was sent.
var errLDAP = errors.New("the answer is no LDAP response to our request")

// askLDAP sends a request with a number and reads its response.
func askLDAP(out io.Writer, in io.Reader, number int64, response asn1.Tag, request func(*cryptobyte.Builder)) error {
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(number)
		request(b)
	})
	message, err := b.Bytes()
	if err != nil {
		return err
	}
	if _, err := out.Write(message); err != nil {
		return err
	}
	content, err := readBER(in, asn1.SEQUENCE)
	if err != nil {
		return err
	}
	rest := bytes.NewReader(content)
	id, err := readBER(rest, asn1.INTEGER)
	if err != nil {
		return err
	}
	result, err := readBER(rest, response)
	if err != nil {
		return err
	}
	fields := bytes.NewReader(result)
	code, err := readBER(fields, asn1.ENUM)
	if err != nil || len(code) != 1 || len(id) != 1 || int64(id[0]) != number {
		return errors.Join(errLDAP, err)
	}
	if code[0] == 0 {
		return nil
	}
	refused := &ldapRefusal{code: int(code[0])}
	if _, err := readBER(fields, asn1.OCTET_STRING); err == nil { // matchedDN
		diagnostic, _ := readBER(fields, asn1.OCTET_STRING) // there need be none
		refused.diagnostic = string(diagnostic)
	}
	return refused
}

// readBER reads one element of the tag and returns its content. Lengths may have more octets than they need: RFC 4511 section
// 5.1 asks for BER and not for DER.
func readBER(in io.Reader, tag asn1.Tag) ([]byte, error) {
	head := make([]byte, 2, 6)
	if _, err := io.ReadFull(in, head); err != nil {
		return nil, err
	}
	size := int(head[1])
	if size >= 0x80 {
		octets := head[2 : 2+min(size&0x7f, 4)]
		if len(octets) != size&0x7f || len(octets) == 0 {
			return nil, errLDAP
		}
		if _, err := io.ReadFull(in, octets); err != nil {
			return nil, err
		}
		size = 0
		for _, octet := range octets {
			size = size<<8 | int(octet)
		}
	}
	if head[0] != byte(tag) || size > openldapAnswer {
		return nil, errLDAP
	}
	content := make([]byte, size)
	_, err := io.ReadFull(in, content)
	return content, err
}

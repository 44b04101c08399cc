package loop

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"chancery/internal/agent/probe"
	"chancery/internal/agent/recipe"
)

// TestOpenLDAPAttributes: slapd is told of each file by the setting that its library honours, whatever order they are in.
func TestOpenLDAPAttributes(t *testing.T) {
	r, ok := recipe.Builtin("openldap")
	if !ok {
		t.Fatal("there is no recipe openldap")
	}
	host := recipe.Host{Name: "ldap1.example.com", DNS: []string{"ldap1.example.com"}, IP: []string{"192.0.2.1"}, Authority: "root"}
	for library, want := range map[string]string{
		"gnutls": "olcTLSCertificateKeyFile=/r/etc/ldap/tls/server.key olcTLSCertificateFile=/r/etc/ldap/tls/server.pem " +
			"olcTLSCACertificateFile=/r/etc/ldap/tls/clients-ca.pem olcTLSCRLFile=/r/etc/ldap/tls/clients-crl.pem",
		"ssl": "olcTLSCertificateKeyFile=/r/etc/ldap/tls/server.key olcTLSCertificateFile=/r/etc/ldap/tls/server.pem " +
			"olcTLSCACertificateFile=/r/etc/ldap/tls/clients-ca.pem olcTLSCACertificatePath=/r/etc/ldap/tls/clients olcTLSCRLCheck=all",
	} {
		plan, err := r.Resolve(host, map[string]string{"clients": "true"}, recipe.Facts{"library": library, "etc": "/etc/ldap"})
		must(t, err)
		var got []string
		for _, a := range openldapAttributes(plan.Files, func(path string) string { return "/r" + path }) {
			got = append(got, a.name+"="+a.value)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("with %s slapd is told %q", library, got)
		}
	}
}

// TestOpenLDAPAnswers: what a server answers is believed only if it is the answer to what was asked, and a refusal says what
// would pass.
func TestOpenLDAPAnswers(t *testing.T) {
	const (
		bound     = "\x30\x0c\x02\x01\x01\x61\x07\x0a\x01\x00\x04\x00\x04\x00"
		boundLong = "\x30\x84\x00\x00\x00\x10\x02\x01\x01\x61\x84\x00\x00\x00\x07\x0a\x01\x00\x04\x00\x04\x00" // BER as Active Directory writes it
		done      = "\x30\x0c\x02\x01\x02\x67\x07\x0a\x01\x00\x04\x00\x04\x00"
	)
	refusal := func(code string) string {
		return "\x30\x10\x02\x01\x02\x67\x0b\x0a\x01" + code + "\x04\x00\x04\x04oops"
	}
	for name, c := range map[string]struct {
		answers []string
		says    string
	}{
		"success":                         {[]string{bound, done}, ""},
		"success, lengths padded":         {[]string{boundLong, done}, ""},
		"no access":                       {[]string{bound, refusal("\x32")}, "result code 50, oops: give the agent's user manage"},
		"files that slapd cannot use":     {[]string{bound, refusal("\x50")}, "has no TLS until"},
		"another refusal":                 {[]string{bound, refusal("\x01")}, "result code 1, oops"},
		"the answer to another request":   {[]string{"\x30\x0c\x02\x01\x07\x61\x07\x0a\x01\x00\x04\x00\x04\x00"}, "no LDAP response to our request"},
		"an answer of another kind":       {[]string{done}, "no LDAP response to our request"},
		"an answer without end":           {[]string{"\x30\x84\x7f\xff\xff\xff\x02"}, "no LDAP response to our request"},
		"an answer of indefinite length":  {[]string{"\x30\x80\x02\x01\x01\x00\x00"}, "no LDAP response to our request"},
		"half an answer":                  {[]string{bound[:9]}, "EOF"},
		"nothing":                         {nil, "EOF"},
		"something else than an LDAP one": {[]string{"HTTP/1.0 400 Bad Request\r\n\r\n"}, "no LDAP response to our request"},
	} {
		dir, err := os.MkdirTemp("", "ldapi") // a socket's path may have 107 octets
		must(t, err)
		defer os.RemoveAll(dir)
		socket := filepath.Join(dir, "s")
		listener, err := net.Listen("unix", socket)
		must(t, err)
		heard := make(chan string, 1)
		go func() { heard <- answering(listener, c.answers) }()
		consumer := &consumer{system: probe.System{}, plan: &recipe.Plan{Files: []recipe.PlannedFile{{Path: "/k", Content: []string{"key"}, Format: "pem"}}}}
		err = consumer.setOpenLDAPFiles(t.Context(), recipe.Step{With: map[string]string{"socket": socket}}, consumer.plan, nil)
		listener.Close()
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, where %q is expected", name, err, c.says)
		}
		if said := <-heard; c.says == "" && (!strings.Contains(said, "EXTERNAL") || !strings.Contains(said, "cn=config") || !strings.Contains(said, "olcTLSCertificateKeyFile")) {
			t.Errorf("%s: slapd hears %q", name, said)
		}
	}
	c := &consumer{plan: &recipe.Plan{}}
	err := c.setOpenLDAPFiles(t.Context(), recipe.Step{With: map[string]string{"socket": "/nowhere/ldapi"}}, c.plan, nil)
	if err == nil || !strings.Contains(err.Error(), "ldapi:///") {
		t.Errorf("without a socket: %v", err)
	}
}

// answering answers one client, request by request, and returns what it heard.
func answering(listener net.Listener, answers []string) string {
	conn, err := listener.Accept()
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	var heard []string
	for i := 0; i < max(1, len(answers)); i++ {
		request := make([]byte, 4096)
		n, err := conn.Read(request)
		heard = append(heard, string(request[:n]))
		if err != nil || i == len(answers) {
			break
		}
		if _, err := io.WriteString(conn, answers[i]); err != nil {
			break
		}
	}
	return strings.Join(heard, "")
}

// TestOpenLDAPTakesBack: what named a file that is gone gets no value, before anything else is said; what it did not say itself is
// left alone.
func TestOpenLDAPTakesBack(t *testing.T) {
	r, _ := recipe.Builtin("openldap")
	host := recipe.Host{Name: "ldap1.example.com", DNS: []string{"ldap1.example.com"}, Authority: "root"}
	plans := map[string]*recipe.Plan{"": nil}
	for clients, library := range map[string]string{"false": "gnutls", "true": "gnutls", "true ssl": "ssl"} {
		value, _, _ := strings.Cut(clients, " ")
		plan, err := r.Resolve(host, map[string]string{"clients": value}, recipe.Facts{"library": library, "etc": "/etc/ldap"})
		must(t, err)
		plans[clients] = plan
	}
	for _, c := range []struct{ from, to, want string }{
		{"", "false", ""}, {"false", "true", ""}, {"false", "false", ""}, {"", "true", ""},
		{"true", "false", "olcTLSCACertificateFile olcTLSCRLFile"},
		{"true ssl", "false", "olcTLSCACertificateFile olcTLSCACertificatePath olcTLSCRLCheck"},
		{"true ssl", "true", "olcTLSCACertificatePath olcTLSCRLCheck"},
	} {
		var gone []string
		set := 0
		for _, a := range openldapChange(plans[c.to], plans[c.from], func(path string) string { return path }) {
			if set += len(a.value); a.value == "" && set == 0 {
				gone = append(gone, a.name)
			}
		}
		if strings.Join(gone, " ") != c.want || set == 0 {
			t.Errorf("from clients=%s to clients=%s slapd is told to forget %q, not %q", c.from, c.to, gone, c.want)
		}
	}
}

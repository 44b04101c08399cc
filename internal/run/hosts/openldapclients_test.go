package hosts_test

import (
	"slices"
	"strings"
	"testing"

	"chancery/client"
)

// verify says what slapd asks of clients, as an operator does.
func (d *directoryServer) verify(word string) {
	d.h.t.Helper()
	change := d.h.command("ldapmodify", "-Q", "-Y", "EXTERNAL", "-H", d.ldapi())
	change.Stdin = strings.NewReader("dn: cn=config\nchangetype: modify\nreplace: olcTLSVerifyClient\nolcTLSVerifyClient: " + word + "\n")
	output(d.h.t, change)
}

func (d *directoryServer) ldapi() string {
	return "ldapi://" + strings.ReplaceAll(d.h.inside("/run/slapd/ldapi"), "/", "%2F")
}

// settings are the names of slapd's olcTLS settings.
func (d *directoryServer) settings() []string {
	d.h.t.Helper()
	var names []string
	said := output(d.h.t, d.h.command("ldapsearch", "-Q", "-LLL", "-o", "ldif-wrap=no", "-Y", "EXTERNAL", "-H", d.ldapi(), "-s", "base", "-b", "cn=config"))
	for line := range strings.Lines(said) {
		if name, _, ok := strings.Cut(line, ":"); ok && strings.HasPrefix(name, "olcTLS") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// ordered orders the placement with clients as said, and has the agent do so.
func (d *directoryServer) ordered(parameters map[string]string, clients string) {
	t := d.h.t
	t.Helper()
	parameters["clients"] = clients
	orders := []client.PlacementOrder{{Recipe: "openldap", Parameters: parameters}}
	_, err := d.world.admin.ChangeHost(t.Context(), d.h.name, client.ChangeHostRequest{Placements: &orders})
	must(t, err)
}

// restarted is slapd stopped and started: it starts only where each file that cn=config names is there.
func (d *directoryServer) restarted() {
	d.h.t.Helper()
	must(d.h.t, d.Stop())
	d.Process = d.h.start(d.program)
}

// TestOpenLDAPWithoutClientsAgain takes clients' certificates from slapd and gives them back: what named the files that are gone is
// taken out of cn=config, slapd goes on without a break and starts again. When
// the placement is not desired any more, all stays.
func TestOpenLDAPWithoutClientsAgain(t *testing.T) {
	t.Parallel()
	w := theWorld(t)
	d := w.openldap(t)
	d.opened()
	host, err := w.admin.Host(t.Context(), d.h.name)
	must(t, err)
	if len(host.Placements) != 1 {
		t.Fatalf("%+v", host.Placements)
	}
	parameters := host.Placements[0].Parameters
	ca := strings.TrimSuffix(d.crl, "crl.pem") + "ca.pem"
	with, without := []string{"olcTLSCACertificateFile", "olcTLSCRLFile", "olcTLSCertificateFile", "olcTLSCertificateKeyFile", "olcTLSVerifyClient"},
		[]string{"olcTLSCertificateFile", "olcTLSCertificateKeyFile", "olcTLSVerifyClient"}
	wants := func(settings []string) {
		t.Helper()
		if got := d.settings(); !slices.Equal(got, settings) {
			t.Errorf("slapd's settings are %q, not %q", got, settings)
		}
		d.alive()
		d.serves(d.leaf())
	}
	wants(with)
	d.verify("never")
	for range 2 {
		d.ordered(parameters, "false")
		d.h.converge()
		d.h.absent(ca, d.crl)
		wants(without)
		d.restarted()
		d.h.converge()
		wants(without)
		d.ordered(parameters, "true")
		d.h.converge()
		wants(with)
		d.verify("demand")
		d.lets(d.good)
		d.verify("never")
	}
	d.ordered(parameters, "false")
	none := []client.PlacementOrder{}
	d.h.converge()
	wants(without)
	_, err = w.admin.ChangeHost(t.Context(), d.h.name, client.ChangeHostRequest{Placements: &none})
	must(t, err)
	d.h.converge()
	d.restarted()
	if got := d.settings(); !slices.Equal(got, without) {
		t.Errorf("after its removal: %q", got)
	}
	d.h.read(d.cert)
}

package db_test

import "testing"

// TestOwnerEnters holds against PostgreSQL's files whether anybody is let in as the owner over the network.
func TestOwnerEnters(t *testing.T) {
	t.Parallel()
	l := newLogins(t)
	one := l.as("chancery_one")
	enters := func(want bool, when string) {
		t.Helper()
		if got, err := one.OwnerEnters(t.Context()); err != nil || got != want {
			t.Errorf("%s: the owner enters: %v, %v", when, got, err)
		}
	}
	enters(true, "nobody has installed the function")
	l.install()
	enters(false, "the owner may not log in")
	l.pg.Exec(t, "ALTER ROLE pki LOGIN")
	enters(true, "everybody is let in")
	// What is for TLS alone counts where there is TLS.
	l.pg.Exec(t, "COPY (SELECT 1) TO PROGRAM 'umask 077; openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=db -days 2"+
		" -keyout server.key -out server.crt 2>/dev/null'")
	l.pg.Exec(t, "ALTER SYSTEM SET ssl_ca_file = 'server.crt'")
	l.pg.Exec(t, "ALTER SYSTEM SET ssl = on")
	l.pg.Reload(t)
	// The views read the files; who is let in stays as it was, since nothing is loaded.
	files := func(hba, ident string) {
		t.Helper()
		for setting, text := range map[string]string{"hba_file": hba, "ident_file": ident} {
			l.pg.Exec(t, "DO $$ BEGIN EXECUTE format('COPY (SELECT unnest(string_to_array(%L, ''|''))) TO %L (DELIMITER ''~'')', '"+text+
				"', current_setting('"+setting+"')); END $$")
		}
	}
	const shipped = "local all postgres peer|local fleet pki peer map=rescue|hostssl fleet +pki,+pki_reader all cert map=nodes"
	nodes := "rescue root pki|members db1 postgres|nodes \"/^(chancery_[a-z]*)$\" chancery_one"
	for _, c := range []struct {
		hba, ident string
		want       bool
	}{
		{shipped, nodes, false},
		{shipped, nodes + "|nodes node1 pki", true},
		{shipped + "|hostssl all postgres all cert map=members", nodes, false},
		{shipped + "|hostssl fleet all all scram-sha-256", nodes, true},
		{shipped + "|hostssl fleet pki all cert", nodes, true},
		{shipped + "|host fleet pki all reject", nodes, false},
		{shipped + "|host replication all all md5", nodes, false},
	} {
		files(c.hba, c.ident)
		enters(c.want, c.hba+" with "+c.ident)
	}
}

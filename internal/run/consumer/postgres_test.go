package consumer

import (
	"os/exec"
	"strings"
	"testing"
)

func TestPostgreSQLAnswers(t *testing.T) {
	pg, err := StartPostgreSQL(t.Context(), t.TempDir(), PostgreSQLOptions{Durable: true})
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("psql", pg.URL("postgres"), "-Atc", "select 1, current_setting('fsync')").CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "1|on" {
		t.Fatalf("psql: %v: %s", err, out)
	}
	if err := pg.Stop(); err != nil {
		t.Fatal(err)
	}
}

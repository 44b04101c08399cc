package cli_test

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

// TestPageOfTokensIsTyped types docs/hsm.md, block by block, and holds what is printed against what the page shows; … stands for
// anything.
func TestPageOfTokensIsTyped(t *testing.T) {
	if testing.Short() {
		return // the scripts play the same under the race detector
	}
	t.Parallel()
	w := newWorld(t, db.SQLite)
	_, at, err := w.places()
	if err != nil {
		t.Fatal(err)
	}
	soft, dir, etc := pkitest.SoftHSMModule(t), t.TempDir(), t.TempDir()
	tokens := filepath.Join(dir, "tokens")
	if err := os.Mkdir(tokens, 0o700); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(dir, "softhsm2.conf")
	if err := os.WriteFile(conf, []byte("directories.tokendir = "+tokens+"\nobjectstore.backend = file\nlog.level = ERROR\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "hsm.md"))
	if err != nil {
		t.Fatal(err)
	}
	page := strings.NewReplacer("192.0.2.10:8443", at.api, "192.0.2.10:8080", at.public, "192.0.2.10:9443", at.metrics, "/etc/chancery", etc,
		"/usr/lib/softhsm/libsofthsm2.so", soft).Replace(string(text))
	pidFile := filepath.Join(dir, "pid")
	t.Cleanup(func() { endByFile(t, pidFile) })
	preamble := fmt.Sprintf(`set -euo pipefail
systemctl() {
	if [ "$1" = start ]; then
		chancery serve --dir "$CHANCERY_DIR" >>%[1]s/node.log 2>&1 </dev/null & echo $! >%[1]s/pid
		for i in $(seq 1200); do curl -sf -o /dev/null http://%[2]s/readyz && return; sleep 0.05; done; cat %[1]s/node.log >&2; return 1
	else
		pid=$(cat %[1]s/pid); kill "$pid"; while kill -0 "$pid" 2>/dev/null; do sleep 0.05; done; rm %[1]s/pid
	fi
}
`, dir, at.metrics)
	env := append(os.Environ(), "PATH="+filepath.Dir(w.program)+":"+filepath.Dir(pkitest.TokenHelper(t))+":"+os.Getenv("PATH"),
		"SOFTHSM2_CONF="+conf, "TOKENS="+tokens, "CHANCERY_DIR="+filepath.Join(dir, "authority"), "TZ=UTC")
	typed, compared, printed := 0, 0, ""
	for _, block := range regexp.MustCompile("(?ms)^```(sh|text|yaml)\n(.*?)^```$").FindAllStringSubmatch(page, -1) {
		switch block[1] {
		case "sh":
			cmd := exec.Command("bash", "-c", preamble+block[2])
			cmd.Dir, cmd.Env = dir, env
			out, err := cmd.Output()
			if err != nil {
				failed, _ := err.(*exec.ExitError)
				t.Fatalf("%s\n%v\n%s\n%s", block[2], err, out, failed.Stderr)
			}
			typed, printed = typed+1, string(out)
		case "text":
			compared++
			if !asShown(printed, block[2]) {
				t.Errorf("the page shows\n%s\nand what was printed is\n%s", block[2], printed)
			}
		}
	}
	if typed < 8 || compared < 6 {
		t.Fatalf("%d blocks were typed, %d compared; the page has more", typed, compared)
	}
	if log, err := os.ReadFile(filepath.Join(dir, "node.log")); err != nil || strings.Contains(string(log), "4711-Secret") {
		t.Errorf("the PIN is in the node's log, or there is none: %v", err)
	}
	http.DefaultClient.CloseIdleConnections()
}

// asShown compares over any white space; … is anything.
func asShown(printed, shown string) bool {
	pattern := regexp.QuoteMeta(strings.Join(strings.Fields(shown), " "))
	pattern = strings.ReplaceAll(pattern, "… ", "…")
	pattern = strings.ReplaceAll(pattern, " …", "…")
	return regexp.MustCompile("(?s)^" + strings.ReplaceAll(pattern, "…", ".*") + "$").MatchString(strings.Join(strings.Fields(printed), " "))
}

// endByFile ends the process whose id is in a file, if there is one.
func endByFile(t *testing.T, file string) {
	text, err := os.ReadFile(file)
	if err != nil {
		return
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Error(err)
		return
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		return
	}
	for deadline := time.Now().Add(time.Minute); syscall.Kill(pid, 0) == nil && time.Now().Before(deadline); {
		time.Sleep(20 * time.Millisecond)
	}
}

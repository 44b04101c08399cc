package hosts_test

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"chancery/client"
	"chancery/internal/pki/cert"
	"chancery/internal/run/consumer"
)

// TestContradictedHostIsMended: two nginx of a host have the same files, and only the one that its agent asks is told of new
// ones. From outside the port is answered by the older process. The rollout pauses and says so, again when it is resumed too
// early, and comes to its end once the older one has read its files.
func TestContradictedHostIsMended(t *testing.T) {
	t.Parallel()
	w := theWorld(t)
	h := w.newHost(t, "twice", machine{})
	inner, err := consumer.FreeAddress()
	must(t, err)
	_, port, _ := strings.Cut(inner, ":")
	outer := h.at + ":" + port
	in := h.inside
	const olderConf = "/etc/nginx/older.conf"
	nginx := func(conf, pid, address string) consumer.Program {
		var temporary strings.Builder
		for _, dir := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
			fmt.Fprintf(&temporary, "  %s_temp_path %s;\n", dir, in(pid+"."+dir))
		}
		h.write(conf, fmt.Sprintf("daemon off;\nworker_processes 1;\npid %s;\nevents { worker_connections 64; }\nhttp {\n  access_log off;\n%s"+
			"  server { listen %s ssl; ssl_certificate %s; ssl_certificate_key %s; location / { return 200 hello; } }\n}\n",
			in(pid), &temporary, address, in(nginxCert), in(nginxKey)))
		return consumer.Program{Path: "/usr/sbin/nginx", Args: []string{"-e", "stderr", "-c", in(conf)}, Ready: consumer.Listening(address)}
	}
	newer, older := nginx(nginxConf, "/run/nginx.pid", inner), nginx(olderConf, "/run/older.pid", outer)
	h.join(order("nginx", "address="+inner, "conf="+in(nginxConf)))
	h.converge()
	h.start(newer)
	stale := h.start(older)
	h.converge()
	serial := func() string { return cert.FormatSerial(parsed(t, h.read(nginxCert)).SerialNumber) }
	before := serial()
	if inside, outside := onTheWire(t, h, inner), onTheWire(t, h, outer); inside != before || outside != before {
		t.Fatalf("before, %s and %s are served, and not %s", inside, outside, before)
	}
	h.start(consumer.Program{Path: program(t), Args: []string{"agent", "run", "--state", h.state}})

	ctx := t.Context()
	started, err := w.admin.StartRollout(ctx, client.StartRolloutRequest{Kind: client.RolloutReissue, Pool: h.pool})
	must(t, err)
	paused := func(what string) {
		t.Helper()
		var now *client.Rollout
		until(t, what, func() bool {
			now, err = w.admin.Rollout(ctx, started.ID)
			must(t, err)
			return now.State == client.RolloutPaused
		})
		want := fmt.Sprintf("host %s, placement nginx: its agent reports that it serves %s, and seen from the node %s serves %s", h.name, serial(), outer, before)
		if now.Message != want || serial() == before {
			t.Errorf("it says %q, not %q", now.Message, want)
		}
		if status := w.chancery(t, "status"); !strings.Contains(status, "rollout "+started.ID+" (reissue) of pool "+h.pool+" is paused") {
			t.Errorf("status does not tell of it:\n%s", status)
		}
	}
	paused("the rollout pauses, since the port is answered by an older process")
	renewed := serial()
	_, err = w.admin.ResumeRollout(ctx, started.ID, client.ResumeRolloutRequest{})
	must(t, err)
	paused("nothing was mended, and it pauses again")

	must(t, stale.Signal(syscall.SIGHUP))
	until(t, "the older process serves the new certificate", func() bool { return onTheWire(t, h, outer) == renewed })
	_, err = w.admin.ResumeRollout(ctx, started.ID, client.ResumeRolloutRequest{})
	must(t, err)
	r := &ring{t: t, w: w}
	if ended := r.follow(started.ID, nil); ended.State != client.RolloutDone || ended.Message != "" || ended.Waves[0].Done != 1 {
		t.Errorf("mended, it is %s: %s, %+v", ended.State, ended.Message, ended.Waves)
	}
	if serial() != renewed {
		t.Errorf("what had been re-issued, %s, was so again: %s", renewed, serial())
	}
}

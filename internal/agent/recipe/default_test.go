package recipe

import (
	"strings"
	"testing"
)

// TestDefaultsByCondition: which default is meant depends on parameters before it, as given or by default.
func TestDefaultsByCondition(t *testing.T) {
	text := strings.Replace(sound, "parameters:\n", `parameters:
  - {name: service, type: choice, choices: [web, mail, news], default: web}
  - {name: base, type: path, defaults: [{when: param.service == mail, value: "${fact.conf.ssl_certificate|/etc/mail}"}, {when: param.service == news,
     value: /etc/news}], default: /etc/web}
`, 1)
	text = strings.Replace(text, `"${param.dir}/cert.pem"`, `"${param.base}/cert.pem"`, 1)
	r, err := Parse([]byte(text), "test")
	if err != nil {
		t.Fatal(err)
	}
	facts := Facts{"version": "1.5", "owner": "nobody"}
	for _, c := range []struct {
		parameters map[string]string
		facts      Facts
		want       string
	}{
		{nil, facts, "/etc/web"},
		{map[string]string{"service": "mail"}, facts, "/etc/mail"},
		{map[string]string{"service": "mail"}, Facts{"version": "1.5", "owner": "nobody", "conf.ssl_certificate": "/srv/tls"}, "/srv/tls"},
		{map[string]string{"service": "news"}, facts, "/etc/news"},
		{map[string]string{"service": "news", "base": "/opt/x"}, facts, "/opt/x"},
	} {
		plan, err := r.Resolve(sampleHost, c.parameters, c.facts)
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, f := range plan.Files {
			found = found || f.Path == c.want+"/cert.pem"
		}
		if !found {
			t.Errorf("%v: %+v has no %s/cert.pem", c.parameters, plan.Files, c.want)
		}
	}
	x, err := r.Explain(map[string]string{"service": "news"})
	if err != nil {
		t.Fatal(err)
	}
	if shown := x.Parameters[1].Default; shown != "/etc/news" {
		t.Errorf("explained is the default %q", shown)
	}
	x, err = r.Explain(nil)
	if err != nil {
		t.Fatal(err)
	}
	if shown := x.Parameters[1].Default; !strings.Contains(shown, "/etc/news where service is news") || !strings.Contains(shown, "else /etc/web") {
		t.Errorf("the manual has the default %q", shown)
	}
}

func TestDefaultsByConditionRefused(t *testing.T) {
	for _, c := range []struct{ defaults, words string }{
		{`defaults: [{when: param.kind == two, value: /x}]`, "only earlier parameters"},
		{`defaults: [{when: fact.version >= 2.0, value: /x}]`, "only earlier parameters"},
		{`defaults: [{when: param.service == other, value: /x}]`, "is never"},
		{`defaults: [{when: param.service == mail, value: relative}]`, "is not absolute"},
		{`defaults: [{when: param.service == mail, value: "${param.base}/x"}]`, "is the parameter itself"},
		{`defaults: [{when: "", value: /x}]`, "when and value are wanted"},
		{`required: true, defaults: [{when: param.service == mail, value: /x}]`, "a parameter that is required has no default"},
	} {
		text := strings.Replace(sound, "parameters:\n", "parameters:\n  - {name: service, type: choice, choices: [web, mail], default: web}\n"+
			"  - {name: base, type: path, "+c.defaults+"}\n", 1)
		_, err := Parse([]byte(text), "test")
		refused(t, err, c.words)
	}
}

// TestProbeByAction: an action of the probe is held to the same rules as one of a step.
func TestProbeByAction(t *testing.T) {
	for _, c := range []struct{ probe, words string }{
		{`probe: {action: look-at-qemu-vnc, with: {dir: "${param.dir}"}}`, "needs dir, sockets"},
		{`probe: {action: reload-qemu-vnc, with: {dir: /a, sockets: /b}}`, "put it into reload"},
		{`probe: {action: look-at-qemu-vnc, with: {dir: /a, sockets: b}}`, "is not absolute"},
		{`probe: {action: look-at-qemu-vnc, with: {dir: /a, sockets: /b}, address: "localhost:1"}`, "exactly one of"},
		{`probe: {address: "localhost:1", with: {dir: /a}}`, "only an action has with"},
		{`probe: {action: look-at-qemu-vnc, with: {dir: /a, sockets: "${param.base}"}}`, "base is used as socket: say trusted"},
	} {
		at := strings.Index(sound, "probe: {address")
		end := at + strings.IndexByte(sound[at:], '\n')
		text := strings.Replace(sound[:at]+c.probe+sound[end:], "parameters:\n", "parameters:\n  - {name: base, type: path, default: /run/base}\n", 1)
		_, err := Parse([]byte(text), "test")
		refused(t, err, c.words)
	}
}

package recipe

import "testing"

func TestBuiltinsResolve(t *testing.T) {
	h := Host{Name: "host1.example.com", DNS: []string{"host1.example.com", "host1"}, IP: []string{"192.0.2.1"}, Authority: "default Root"}
	n := 0
	for _, r := range Builtins() {
		n++
		parameters := map[string]string{}
		if r.Name == "plain" {
			parameters = map[string]string{"key": "/k/key.pem", "cert": "/k/cert.pem"}
		}
		if _, err := r.FactRules(parameters); err != nil {
			t.Error(err)
		}
		plan, err := r.Resolve(h, parameters, Facts{})
		if err != nil {
			t.Error(err)
			continue
		}
		t.Logf("%+v", plan)
	}
	if n < 2 {
		t.Fatalf("%d recipes", n)
	}
}

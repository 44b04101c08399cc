package cluster

import (
	"fmt"
	"os"
	"testing"

	"github.com/goccy/go-yaml"
)

// readPatroni reads what a cluster is bootstrapped with.
func readPatroni(t *testing.T, text []byte) (times, parameters map[string]any) {
	t.Helper()
	var whole struct {
		Bootstrap struct {
			DCS map[string]any `yaml:"dcs"`
		} `yaml:"bootstrap"`
	}
	if err := yaml.Unmarshal(text, &whole); err != nil {
		t.Fatal(err)
	}
	times = whole.Bootstrap.DCS
	postgresql, _ := times["postgresql"].(map[string]any)
	parameters, _ = postgresql["parameters"].(map[string]any)
	return times, parameters
}

// TestTimesAreThoseShipped holds what clusters of tests, of chaos and of the benchmark are bootstrapped with against what operators are given.
func TestTimesAreThoseShipped(t *testing.T) {
	shipped, err := os.ReadFile("../../../deploy/patroni/patroni.yml")
	if err != nil {
		t.Fatal(err)
	}
	m := &Member{Name: "n1", Dir: "/tmp/n1", Address: "127.0.0.1"}
	c := &Cluster{Members: []*Member{m}, options: Options{Parameters: map[string]string{"max_connections": "200"}}}
	m.cluster = c
	made, err := plain(c, m)
	if err != nil {
		t.Fatal(err)
	}
	wantTimes, wantParameters := readPatroni(t, shipped)
	times, parameters := readPatroni(t, []byte(made.patroni))
	for _, name := range []string{"ttl", "loop_wait", "retry_timeout", "synchronous_mode", "synchronous_mode_strict"} {
		if got, want := fmt.Sprint(times[name]), fmt.Sprint(wantTimes[name]); got != want || times[name] == nil {
			t.Errorf("%s is %s, and %s is shipped", name, got, want)
		}
	}
	for _, name := range []string{"synchronous_commit", "wal_sender_timeout", "wal_retrieve_retry_interval", "wal_log_hints", "hot_standby", "max_connections"} {
		if got, want := fmt.Sprint(parameters[name]), fmt.Sprint(wantParameters[name]); got != want || parameters[name] == nil {
			t.Errorf("parameter %s is %s, and %s is shipped", name, got, want)
		}
	}
	if _, off := parameters["fsync"]; off {
		t.Error("fsync is not PostgreSQL's own")
	}
}

package cluster

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// files is what the programs of a member are started with.
type files struct{ patroni, etcd string }

// plain configures a member of a cluster without TLS; PostgreSQL alone may have it later, by Certify. The times are those that deploy/patroni
// ships. Patroni speaks JSON to etcd's gateway, which is on by default only where etcd is told by flags.
func plain(c *Cluster, m *Member) (files, error) {
	bin, err := Programs()
	if err != nil {
		return files{}, err
	}
	var clients, peers, parameters []string
	for _, other := range c.Members {
		clients = append(clients, other.Client())
		peers = append(peers, fmt.Sprintf("%s=http://%s", other.Name, other.Peer()))
	}
	all := map[string]string{"wal_log_hints": "on", "synchronous_commit": "remote_apply", "wal_sender_timeout": "4s", "wal_retrieve_retry_interval": "1s",
		"hot_standby": "on", "shared_buffers": "32MB", "max_connections": "100"}
	maps.Copy(all, c.options.Parameters)
	for name, value := range all {
		parameters = append(parameters, fmt.Sprintf("        %s: %q\n", name, value))
	}
	slices.Sort(parameters)
	made := files{etcd: fmt.Sprintf(`name: %[1]s
data-dir: %[2]s/etcd
listen-client-urls: http://%[3]s
advertise-client-urls: http://%[3]s
listen-peer-urls: http://%[4]s
initial-advertise-peer-urls: http://%[4]s
initial-cluster: %[5]s
enable-grpc-gateway: true
`, m.Name, m.Dir, m.Client(), m.Peer(), strings.Join(peers, ","))}
	made.patroni = fmt.Sprintf(`scope: chancery
name: %[1]s
restapi: {listen: "%[2]s", connect_address: "%[2]s"}
etcd3: {hosts: [%[3]s]}
bootstrap:
  dcs:
    ttl: 20
    loop_wait: 1
    retry_timeout: 3
    synchronous_mode: true
    synchronous_mode_strict: true
    postgresql:
      use_pg_rewind: true
      use_slots: true
      parameters:
%[4]s  initdb: [{encoding: UTF8}, {locale: C}, {auth-host: trust}, {auth-local: trust}]
  pg_hba: ["local all all trust", "host all all all trust", "host replication all all trust"]
postgresql:
  listen: %[5]s
  connect_address: %[5]s
  data_dir: %[6]s
  bin_dir: %[7]s
  parameters: {unix_socket_directories: %[8]s, ssl_cert_file: %[8]s/%[9]s, ssl_key_file: %[8]s/%[10]s, ssl_ca_file: %[8]s/%[11]s}
  pgpass: %[8]s/pgpass
  authentication: {superuser: {username: postgres}, replication: {username: postgres}, rewind: {username: postgres}}
`, m.Name, m.REST(), strings.Join(clients, ","), strings.Join(parameters, ""), m.Postgres(), m.Data(), bin, m.Dir,
		serverCertificate, serverKey, clientRoots)
	return made, nil
}

// Programs is the directory of the newest PostgreSQL; Debian keeps its programs out of PATH.
func Programs() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil || len(found) == 0 {
		return "", errors.Join(err, errors.New("PostgreSQL is missing; `make packages` installs it"))
	}
	slices.SortFunc(found, func(a, b string) int { return len(a) - len(b) }) // 9 before 15
	if _, err := os.Stat(found[len(found)-1]); err != nil {
		return "", err
	}
	return filepath.Dir(found[len(found)-1]), nil
}

package consumer

import (
	"context"
	"embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

//go:embed java/*.java
var javaSources embed.FS

// CompileJava compiles the server and the client into a directory, which is a class path then.
func CompileJava(ctx context.Context, dir string) error {
	entries, err := javaSources.ReadDir("java")
	if err != nil {
		return err
	}
	args := []string{"-d", dir}
	for _, e := range entries {
		text, err := javaSources.ReadFile("java/" + e.Name())
		if err != nil {
			return err
		}
		file := filepath.Join(dir, e.Name())
		if err := os.WriteFile(file, text, 0o644); err != nil {
			return err
		}
		args = append(args, file)
	}
	if out, err := exec.CommandContext(ctx, "javac", append([]string{"-J-XX:TieredStopAtLevel=1", "-J-XX:+UseSerialGC"}, args...)...).CombinedOutput(); err != nil {
		return fmt.Errorf("compile the Java programs: %w\n%s", err, out)
	}
	return nil
}

// JavaStore is a key store or a trust store, with the file whose first line is its password.
type JavaStore struct{ Path, PasswordFile string }

// JavaServer is a TLS server in Java that wants client certificates, and where its files are. It watches its stores.
type JavaServer struct {
	Classes     string // where CompileJava was told to put them
	Host, Port  string // where it listens
	Keys, Trust JavaStore
}

// javaQuick has Java start fast and small: what runs here runs for seconds.
var javaQuick = []string{"-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto", "-Xmx64m"}

// Keytool is the argument vector of Java's own tool for stores.
func Keytool(args ...string) []string {
	vector := []string{"keytool"}
	for _, option := range javaQuick {
		vector = append(vector, "-J"+option)
	}
	return append(vector, args...)
}

// Program is the server.
func (s JavaServer) Program() Program {
	args := append(append([]string{}, javaQuick...), "-cp", s.Classes, "Server", s.Host, s.Port,
		s.Keys.Path, s.Keys.PasswordFile, s.Trust.Path, s.Trust.PasswordFile)
	return Program{Path: "java", Args: args, Ready: Listening(s.Host + ":" + s.Port)}
}

// JavaClient is the argument vector of a client that asks for a page, with a certificate where keys are given.
func JavaClient(classes, url string, trust JavaStore, keys *JavaStore) []string {
	args := append(append([]string{"java"}, javaQuick...), "-cp", classes, "Client", url, trust.Path, trust.PasswordFile)
	if keys != nil {
		args = append(args, keys.Path, keys.PasswordFile)
	}
	return args
}

package db_test

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

// childMode is the environment variable by which a test runs this binary again as another process.
const childMode = "CHANCERY_DB_TEST_CHILD"

func TestMain(m *testing.M) {
	if mode := os.Getenv(childMode); mode != "" {
		os.Exit(child(mode))
	}
	// The goroutine that waits for the shared PostgreSQL lives as long as the process.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("os/exec.(*Cmd).Wait"))
}

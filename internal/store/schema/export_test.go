package schema

// MigrateFS migrates by other files than the embedded.
var MigrateFS = migrate

package importer

// OpenSSLConfig is shared with the tests that need a database.
const OpenSSLConfig = openSSLConfig

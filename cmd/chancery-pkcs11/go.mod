module chancery/cmd/chancery-pkcs11

go 1.26.0

require (
	chancery v0.0.0-00010101000000-000000000000
	github.com/miekg/pkcs11 v1.1.2
)

replace chancery => ../..

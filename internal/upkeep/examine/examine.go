// Package examine looks at certificates where they are used: on ports and in files.
package examine

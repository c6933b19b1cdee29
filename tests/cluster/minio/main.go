// Command minio is the S3 server that the tests store their backups in, built from its module because no binary can be
// downloaded where the tests run.
package main

import (
	"os"

	minio "github.com/minio/minio/cmd"
)

func main() {
	minio.Main(os.Args)
}

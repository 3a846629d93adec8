// The lab's stand-in for livenessprobe, which the Go proxy does not have: an HTTP answer from the driver's Probe, with the same flags, of
// those that the chart gives.
package main

import (
	"context"
	"errors"
	"flag"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"lvm-csi.dev/hack/registrar"
)

func main() {
	csiAddress := flag.String("csi-address", "/run/csi/socket", "the driver's socket")
	timeout := flag.Duration("probe-timeout", time.Second, "how long a call of the driver may take")
	health := flag.String("http-endpoint", "", "where to serve /healthz, such as :9808")
	flag.Parse()
	if *health == "" {
		registrar.Fail("--http-endpoint is not given")
	}

	connection, err := registrar.Dial(*csiAddress)
	if err != nil {
		registrar.Fail("%s: %v", *csiAddress, err)
	}
	driver := csi.NewIdentityClient(connection)
	registrar.ServeHealth(*health, func(request *http.Request) error {
		limit, cancel := context.WithTimeout(request.Context(), *timeout)
		defer cancel()
		answer, err := driver.Probe(limit, &csi.ProbeRequest{})
		if err == nil && answer.Ready != nil && !answer.Ready.Value {
			err = errors.New("the driver is not ready")
		}
		return err
	})
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM, syscall.SIGINT)
	<-ended
}

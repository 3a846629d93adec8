// Package registrar is what the lab's stand-ins for node-driver-registrar and livenessprobe have in common.
package registrar

import (
	"fmt"
	"net/http"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Dial makes a connection to the driver's socket, as path or URL; its calls find out whether anybody is there.
func Dial(address string) (*grpc.ClientConn, error) {
	if address != "" && address[0] == '/' {
		address = "unix://" + address
	}
	return grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
}

// ServeHealth answers at http://ADDRESS/healthz with what check finds, until the process ends; address "" is for none.
func ServeHealth(address string, check func(*http.Request) error) {
	if address == "" {
		return
	}
	http.HandleFunc("/healthz", func(answer http.ResponseWriter, request *http.Request) {
		if err := check(request); err != nil {
			Log("not healthy: %v", err)
			http.Error(answer, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(answer, "ok")
	})
	go func() { Fail("serving health: %v", http.ListenAndServe(address, nil)) }()
}

// Log writes one line.
func Log(form string, values ...any) {
	fmt.Fprintf(os.Stderr, time.Now().UTC().Format(time.RFC3339)+" "+form+"\n", values...)
}

// Fail writes one line and ends the process.
func Fail(form string, values ...any) {
	Log(form, values...)
	os.Exit(1)
}

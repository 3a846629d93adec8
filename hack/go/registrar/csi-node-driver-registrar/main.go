// The lab's stand-in for node-driver-registrar, which the Go proxy does not have: it tells kubelet of a CSI driver by the same calls and
// takes the same flags, of those that the chart gives.
package main

import (
	"context"
	"flag"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"lvm-csi.dev/hack/registrar"
)

// The versions that kubelet knows, which is not CSI's own; those of the stock program.
var versions = []string{"1.0.0"}

// server answers kubelet's plugin watcher.
type server struct {
	registration.UnimplementedRegistrationServer
	driver, endpoint string
	failed           chan string
}

func (s *server) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{Type: registration.CSIPlugin, Name: s.driver, Endpoint: s.endpoint, SupportedVersions: versions}, nil
}

func (s *server) NotifyRegistrationStatus(_ context.Context, told *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	if told.PluginRegistered {
		registrar.Log("kubelet registered %s", s.driver)
	} else {
		s.failed <- told.Error
	}
	return &registration.RegistrationStatusResponse{}, nil
}

// The driver's name, when it answers.
func driverName(address string, timeout time.Duration) string {
	connection, err := registrar.Dial(address)
	if err != nil {
		registrar.Fail("%s: %v", address, err)
	}
	defer connection.Close()
	for {
		limit, cancel := context.WithTimeout(context.Background(), timeout)
		info, err := csi.NewIdentityClient(connection).GetPluginInfo(limit, &csi.GetPluginInfoRequest{}, grpc.WaitForReady(true))
		cancel()
		switch {
		case err == nil:
			return info.Name
		case status.Code(err) != codes.DeadlineExceeded:
			registrar.Fail("asking the driver for its name: %v", err)
		}
		registrar.Log("waiting for the driver at %s", address)
	}
}

func main() {
	csiAddress := flag.String("csi-address", "/run/csi/socket", "the driver's socket")
	kubeletPath := flag.String("kubelet-registration-path", "", "the driver's socket, as kubelet sees it")
	directory := flag.String("plugin-registration-path", "/registration", "where kubelet looks for sockets of registration")
	timeout := flag.Duration("timeout", time.Second, "how long a call of the driver may take")
	health := flag.String("http-endpoint", "", "where to serve /healthz, such as :9809")
	flag.Parse()
	if *kubeletPath == "" {
		registrar.Fail("--kubelet-registration-path is not given")
	}

	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM, syscall.SIGINT)
	driver := driverName(*csiAddress, *timeout)
	socket := filepath.Join(*directory, driver+"-reg.sock")
	if err := os.Remove(socket); err != nil && !os.IsNotExist(err) {
		registrar.Fail("removing what an earlier run left: %v", err)
	}
	syscall.Umask(0o077)
	listener, err := net.Listen("unix", socket)
	if err != nil {
		registrar.Fail("listening for kubelet: %v", err)
	}
	// Kubelet forgets a driver whose socket of registration is gone.
	registrar.ServeHealth(*health, func(*http.Request) error {
		_, err := os.Stat(socket)
		return err
	})
	failed := make(chan string, 1)
	grpcServer := grpc.NewServer()
	registration.RegisterRegistrationServer(grpcServer, &server{driver: driver, endpoint: *kubeletPath, failed: failed})
	go func() { registrar.Fail("serving kubelet: %v", grpcServer.Serve(listener)) }()
	registrar.Log("offering %s to kubelet at %s", driver, socket)
	select {
	case <-ended:
		os.Remove(socket)
	case reason := <-failed:
		os.Remove(socket)
		registrar.Fail("kubelet did not register %s: %s", driver, reason)
	}
}

{{- define "lvm-csi.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride }}
{{- else if contains .Chart.Name .Release.Name -}}
{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}
{{- end -}}
{{- end -}}

{{/* The labels that choose pods; never change them, they are immutable. Called with the root and a component. */}}
{{- define "lvm-csi.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ $root.Chart.Name }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "lvm-csi.labels" -}}
{{ include "lvm-csi.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
{{- end -}}

{{/* name and namespace of an object of the release, with its labels; called with the root, a component, and a suffix of the name. */}}
{{- define "lvm-csi.metadata" -}}
{{- $root := index . 0 -}}
name: {{ include "lvm-csi.fullname" $root }}{{ with index . 2 }}-{{ . }}{{ end }}
namespace: {{ $root.Release.Namespace }}
labels:
  {{- include "lvm-csi.labels" (list $root (index . 1)) | nindent 2 }}
{{- end -}}

{{/* The same of an object of the cluster. */}}
{{- define "lvm-csi.clusterMetadata" -}}
{{- $root := index . 0 -}}
name: {{ include "lvm-csi.fullname" $root }}{{ with index . 2 }}-{{ . }}{{ end }}
labels:
  {{- include "lvm-csi.labels" (list $root (index . 1)) | nindent 2 }}
{{- end -}}

{{/* Called with an image's values and the tag to use without one. */}}
{{- define "lvm-csi.image" -}}
{{- $image := index . 0 -}}
image: {{ printf "%s:%s" $image.repository ($image.tag | default (index . 1)) }}{{ with $image.digest }}@{{ . }}{{ end }}
imagePullPolicy: {{ $image.pullPolicy }}
{{- end -}}

{{/* A directory of the node: two drivers on one node must have two, as the driver's own defaults are. Called with the root, what is
     configured, and the directory of the default name. */}}
{{- define "lvm-csi.directory" -}}
{{- $name := (index . 0).Values.driverName -}}
{{- index . 1 | default (eq $name "lvm-csi.dev" | ternary (index . 2) (printf "%s-%s" (index . 2) $name)) -}}
{{- end -}}

{{- define "lvm-csi.stateDir" -}}
{{- include "lvm-csi.directory" (list . .Values.node.stateDir "/var/lib/lvm-csi") -}}
{{- end -}}

{{/* Where earlier versions had the state of a driver with any name; empty where this one has another by the user's word, or the same. */}}
{{- define "lvm-csi.formerStateDir" -}}
{{- if not (or .Values.node.stateDir (eq .Values.driverName "lvm-csi.dev")) -}}/var/lib/lvm-csi{{- end -}}
{{- end -}}

{{- define "lvm-csi.runDir" -}}
{{- include "lvm-csi.directory" (list . .Values.node.runDir "/run/lvm-csi") -}}
{{- end -}}

{{/* The driver's configuration file, the same for both roles. */}}
{{- define "lvm-csi.config" -}}
driverName: {{ .Values.driverName }}
stateDir: {{ include "lvm-csi.stateDir" . }}
runDir: {{ include "lvm-csi.runDir" . }}
attachRequired: {{ .Values.attachRequired }}
{{- with .Values.config }}
{{ toYaml . }}
{{- end }}
pools:
{{ toYaml .Values.pools }}
kubernetes:
  agentSelector: app.kubernetes.io/instance={{ .Release.Name }},app.kubernetes.io/component=node
  authoritySecret: {{ include "lvm-csi.fullname" . }}-authority
  nodeServiceAccount: {{ include "lvm-csi.fullname" . }}-node
  certificateMinutes: {{ .Values.certificateMinutes }}
  {{- if .Values.grow.enabled }}
  growSeconds: {{ .Values.grow.intervalSeconds }}
  {{- end }}
{{- end -}}

{{/* Flags of the driver that depend on the pod. */}}
{{- define "lvm-csi.args" -}}
- --config=/etc/lvm-csi/config.yaml
- --log-format={{ .Values.logging.format }}
- --health-address={{ .Values.ports.address }}:{{ .Values.ports.health }}
{{- if .Values.ports.metrics }}
- --metrics-address={{ .Values.ports.address }}:{{ .Values.ports.metrics }}
{{- end }}
{{- end -}}

{{- define "lvm-csi.env" -}}
- name: CSI_ENDPOINT
  value: unix:///csi/csi.sock
- name: LVM_CSI_LOG
  value: {{ .Values.logging.level }}
# Else each thread that comes and goes may keep memory of its own, the more the more processors there are.
- name: MALLOC_ARENA_MAX
  value: "2"
{{- end -}}

{{- define "lvm-csi.ports" -}}
- {name: health, containerPort: {{ .Values.ports.health }}}
{{- if .Values.ports.metrics }}
- {name: metrics, containerPort: {{ .Values.ports.metrics }}}
{{- end }}
{{- end -}}

{{/* Alive is a driver that answers; ready one whose first look at the machine is over. Neither asks for the state of a volume group: a pod
     that is killed because of a sick disk takes running commands along, and serves the other disks neither. */}}
{{- define "lvm-csi.probes" -}}
livenessProbe:
  {{- if .Values.livenessProbe.sidecar }}
  httpGet: {path: /healthz, port: {{ .Values.ports.livenessProbe }}}
  {{- else }}
  grpc: {port: {{ .Values.ports.health }}, service: live}
  {{- end }}
  initialDelaySeconds: 10
  periodSeconds: 20
  timeoutSeconds: 10
  failureThreshold: 6
readinessProbe:
  grpc: {port: {{ .Values.ports.health }}}
  periodSeconds: 5
  timeoutSeconds: 5
{{- end -}}

{{/* livenessprobe beside the driver. */}}
{{- define "lvm-csi.livenessprobe" -}}
- name: livenessprobe
  {{- include "lvm-csi.image" (list .Values.livenessProbe.image "") | nindent 2 }}
  args:
  - --csi-address=/csi/csi.sock
  - --probe-timeout=8s
  - --http-endpoint={{ .Values.ports.address }}:{{ .Values.ports.livenessProbe }}
  securityContext:
    {{- include "lvm-csi.unprivileged" . | nindent 4 }}
  resources:
    {{- toYaml .Values.livenessProbe.resources | nindent 4 }}
  volumeMounts:
  - {name: socket, mountPath: /csi}
{{- end -}}

{{/* To ask who may read the metrics. */}}
{{- define "lvm-csi.readerRights" -}}
{{- if .Values.ports.metrics }}
# Whose a token is, and whether its owner may read the metrics.
- apiGroups: [authentication.k8s.io]
  resources: [tokenreviews]
  verbs: [create]
- apiGroups: [authorization.k8s.io]
  resources: [subjectaccessreviews]
  verbs: [create]
{{- end }}
{{- end -}}

{{- define "lvm-csi.unprivileged" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* A sidecar of the controller; called with the root, its name, its place among the ports, and its own flags. */}}
{{- define "lvm-csi.sidecar" -}}
{{- $root := index . 0 -}}
{{- $name := index . 1 -}}
{{- $port := add $root.Values.ports.sidecars (index . 2) -}}
- name: {{ $name }}
  {{- include "lvm-csi.image" (list (index $root.Values $name).image "") | nindent 2 }}
  args:
  - --csi-address=/csi/csi.sock
  - --leader-election
  - --http-endpoint={{ $root.Values.ports.address }}:{{ $port }}
  - --timeout={{ $root.Values.sidecars.timeout }}
  - --retry-interval-max={{ $root.Values.sidecars.retryIntervalMax }}
  - --kube-api-qps={{ $root.Values.sidecars.kubeApiQps }}
  - --kube-api-burst={{ $root.Values.sidecars.kubeApiBurst }}
  {{- range index . 3 }}
  - {{ . }}
  {{- end }}
  {{- if eq $name "provisioner" }}
  env:
  - name: NAMESPACE
    valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
  - name: POD_NAME
    valueFrom: {fieldRef: {fieldPath: metadata.name}}
  {{- end }}
  ports:
  - {name: {{ $name }}, containerPort: {{ $port }}}
  livenessProbe:
    httpGet: {path: /healthz/leader-election, port: {{ $port }}}
    initialDelaySeconds: 10
    periodSeconds: 20
    timeoutSeconds: 10
    failureThreshold: 3
  securityContext:
    {{- include "lvm-csi.unprivileged" $root | nindent 4 }}
  resources:
    {{- toYaml $root.Values.sidecars.resources | nindent 4 }}
  volumeMounts:
  - {name: socket, mountPath: /csi}
{{- end -}}

#!/usr/bin/env bash
# Brings the whole system up in the cluster of the current kubectl context, or brings it up to date: Kafka, three Redis
# Clusters, the services and the gateway.  Run again, it changes only what has changed.
#
#     ./deploy-charts-minikube.sh                 in the context's namespace; Kafka in the namespace kafka
#     ./deploy-charts-minikube.sh --delete        removes it all, with everything that was ever stored
#
#   TIMEOUT_S=600            how long each step may take to become ready
#   REDIS_PASSWORD=...       of all Redis nodes (redis, until another one is set); REDIS_ALSO_PASSWORD=... is accepted too
#   STRIMZI_VERSION=1.2.0    installed where Strimzi is not there yet

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

TIMEOUT_S=${TIMEOUT_S:-600}
STRIMZI_VERSION=${STRIMZI_VERSION:-1.2.0}
SERVICES=(order stock payment)
DEPLOYMENTS=(gateway)
for service in "${SERVICES[@]}"; do
    DEPLOYMENTS+=("$service" "$service-processor" "$service-snapshotter")
done

main() {
    check_tools
    check_cluster
    case ${1:-} in
    --delete) delete ;;
    "") install ;;
    *) die "unknown argument: $1 (there is only --delete)" ;;
    esac
}

step() { printf '\n==> %s\n' "$*"; }
die() {
    printf '%s\n' "$*" >&2
    exit 1
}

# --- before anything else

check_tools() {
    local missing=()
    command -v kubectl >/dev/null || missing+=("kubectl (https://kubernetes.io/docs/tasks/tools)")
    command -v helm >/dev/null || missing+=("helm 3.14 or newer (https://helm.sh/docs/intro/install)")
    [ ${#missing[@]} -eq 0 ] || die "$(printf 'missing: %s\n' "${missing[@]}")"
}

check_cluster() {
    kubectl version --request-timeout=10s >/dev/null 2>&1 ||
        die "kubectl reaches no cluster (context: $(kubectl config current-context 2>/dev/null || echo none)).  With minikube: minikube start --cpus=4 --memory=8192"
}

# --- installing

install() {
    install_kafka
    install_redis
    apply_services
    wait_for_everything
    say_where
}

install_kafka() {
    step "Kafka, in the namespace kafka"
    kubectl get namespace kafka >/dev/null 2>&1 || kubectl create namespace kafka
    if has_strimzi; then
        echo "Strimzi is there"
    elif has_kafka; then
        echo "Kafka is there, without Strimzi: it is left as it is, and set-up creates the topics"
        return
    else
        helm upgrade --install strimzi oci://quay.io/strimzi-helm/strimzi-kafka-operator \
            --version "$STRIMZI_VERSION" --namespace kafka --wait --timeout "${TIMEOUT_S}s"
    fi
    if is_operated || ! has_kafka; then
        kubectl apply -n kafka -f strimzi-kafka-config/kafka-helm-values.yaml
    else
        echo "These brokers are not Strimzi's: they are left as they are, and set-up creates the topics"
    fi
}

has_strimzi() { kubectl get crd kafkas.kafka.strimzi.io >/dev/null 2>&1; }
has_kafka() { kubectl get service my-cluster-kafka-bootstrap -n kafka >/dev/null 2>&1; }
is_operated() { kubectl get kafka my-cluster -n kafka >/dev/null 2>&1; }

install_redis() {
    local service pids=() pid
    step "Redis, a cluster of six for each service"
    for service in "${SERVICES[@]}"; do
        install_one_redis "$service" &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do
        wait "$pid" || not_ready "a Redis Cluster" "kubectl get pods -l app.kubernetes.io/name=redis-cluster" \
            "kubectl logs -l app.kubernetes.io/component=create --tail=50"
    done
}

install_one_redis() {
    local service=$1 arguments=()
    # Of a release that is not interrupted any more; helm would refuse to touch it.
    helm status "$service-redis" 2>/dev/null | grep -q '^STATUS: pending' && helm rollback "$service-redis" >/dev/null 2>&1
    [ -z "${REDIS_PASSWORD:-}" ] || arguments+=(--set-literal "password=$REDIS_PASSWORD")
    arguments+=(--set-literal "alsoPassword=${REDIS_ALSO_PASSWORD:-}")
    # What was set earlier stays: a password given once need not be given again.
    helm upgrade --install --reset-then-reuse-values "$service-redis" helm/redis-cluster "${arguments[@]}" \
        --set-json "clients=[{\"component\":\"$service\"},{\"role\":\"audit\"}]" --timeout "${TIMEOUT_S}s" >/dev/null
    echo "$service-redis is there"
}

apply_services() {
    step "The services and the gateway"
    # A set-up that has ended in the last minutes cannot be changed; it does no harm to run again.
    kubectl delete job set-up --ignore-not-found --wait >/dev/null
    kubectl apply -f k8s/
}

# --- waiting

wait_for_everything() {
    local service name
    step "Waiting until everything is ready, $TIMEOUT_S s a step"
    if is_operated; then
        kubectl wait kafka/my-cluster -n kafka --for=condition=Ready --timeout="${TIMEOUT_S}s" ||
            not_ready Kafka "kubectl describe kafka my-cluster -n kafka" "kubectl get pods -n kafka"
    fi
    kubectl wait job/set-up --for=condition=Complete --timeout="${TIMEOUT_S}s" ||
        not_ready "The topics" "kubectl logs -l role=set-up --all-containers --tail=20"
    for service in "${SERVICES[@]}"; do
        kubectl rollout status "statefulset/$service-redis" --timeout="${TIMEOUT_S}s" ||
            not_ready "$service-redis" "kubectl describe pod -l app.kubernetes.io/instance=$service-redis" "kubectl logs $service-redis-0"
    done
    for name in "${DEPLOYMENTS[@]}"; do
        kubectl rollout status "deployment/$name" --timeout="${TIMEOUT_S}s" || explain "$name"
    done
}

explain() {
    local name=$1
    if kubectl get pods -l "app.kubernetes.io/name=$name" -o jsonpath='{..waiting.reason}' | grep -q -e ErrImage -e ImagePull; then
        echo "The node has no such image: make images (with minikube first: eval \$(minikube docker-env))" >&2
    fi
    not_ready "$name" "kubectl describe pod -l app.kubernetes.io/name=$name" "kubectl logs -l app.kubernetes.io/name=$name --tail=50"
}

not_ready() {
    local what=$1
    shift
    printf '\n%s: not ready.  To see why:\n' "$what" >&2
    printf '    %s\n' "$@" "kubectl get events --sort-by=.lastTimestamp | tail -n 20" >&2
    exit 1
}

say_where() {
    local context
    context=$(kubectl config current-context 2>/dev/null || true)
    step "Ready"
    kubectl get pods
    if [ "$context" = minikube ] && command -v minikube >/dev/null; then
        echo "The gateway: http://$(minikube ip)/ (minikube addons enable ingress), or port 30080 of the same address"
    else
        echo "The gateway: port 30080 of every node, or: kubectl port-forward service/gateway 8000:80"
    fi
}

# --- deleting

delete() {
    local service
    step "The services and the gateway"
    kubectl delete --ignore-not-found -f k8s/
    step "Redis, and what it stored"
    for service in "${SERVICES[@]}"; do
        helm uninstall "$service-redis" --ignore-not-found --wait --timeout "${TIMEOUT_S}s"
        kubectl delete pvc -l "app.kubernetes.io/instance=$service-redis" --ignore-not-found
    done
    step "Kafka, and the log"
    if has_strimzi; then
        # The topics first, while the operator that deletes them is there.
        kubectl delete kafkatopic --all -n kafka --ignore-not-found --timeout="${TIMEOUT_S}s"
        kubectl delete -n kafka -f strimzi-kafka-config/kafka-helm-values.yaml --ignore-not-found --timeout="${TIMEOUT_S}s"
        kubectl delete pvc -l strimzi.io/cluster=my-cluster -n kafka --ignore-not-found
        helm uninstall strimzi -n kafka --ignore-not-found
    else
        echo "The brokers are not ours: left as they are"
    fi
}

main "$@"
